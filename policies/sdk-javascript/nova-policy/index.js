/**
 * The JavaScript SDK for ranking policies of Nova: declare the inputs, then write the rule as a
 * function.
 *
 *     import { scorer } from "./nova-policy/index.js";
 *
 *     const parts = (post, params, request) =>
 *       [2 ** (-post.age_hours / params.half_life_hours), 0.1 * post.likes];
 *
 *     export const policy = scorer({
 *       features: ["age_hours", "likes"],
 *       parameters: { half_life_hours: { default: 12, min: 0.1, max: 720, doc: "Hours until worth half." } },
 *       explains: ["freshness", "popularity"],
 *       each: parts,
 *     });
 *
 * `scorer`, `deduper` and `saturator` return a policy with its stage's function (`score`, `dedup`
 * or `saturate`), `explain` and `describe`. A rule gets these arguments:
 *
 * - `post`, one candidate: `postId`, `authorId`, `createdAtMs` and the declared features; or
 *   `posts`, all candidates as columns: `posts.length`, `posts.postIds`, `posts.authorIds`,
 *   `posts.createdAtMs` (for a saturator also `posts.scores`) and a Float32Array for each declared
 *   feature;
 * - `params`, the declared parameters by name;
 * - `request`: `userId`, `nowMs`, `seed`, `limit`.
 *
 * Ids, times and the seed are BigInt, as 64-bit numbers are in JavaScript.
 *
 * A policy is pure: the same arguments give the same result. It keeps no state between calls, reads
 * no clock, and uses `request.seed` instead of `Math.random`.
 */

/** Shows a value in an error message, in a few characters. */
const shown = (value) => (typeof value === "string" ? JSON.stringify(value.slice(0, 40)) : String(value).slice(0, 40));

/** Shows the length of a list, or what there is in place of a list. */
const count = (list) => list?.length ?? shown(list);

/** Returns a rule's answer as an array. Its holes become `undefined`. */
const listed = (answer, what) => {
  if (typeof answer !== "object" || answer?.[Symbol.iterator] === undefined) {
    throw new Error(`the rule returned ${shown(answer)}; return an array of ${what}`);
  }
  return Array.from(answer);
};

/** The common part of the three stages: typed columns, typed parameters and `describe`. */
class Policy {
  constructor(stage, { features = [], parameters = {} }, explains) {
    Object.assign(this, { stage, features, parameters, explains });
    this.parameterNames = Object.keys(parameters);
    if (new Set(features).size !== features.length) throw new Error("a feature is declared twice");
    for (const [name, parameter] of Object.entries(parameters)) {
      const numbers = [parameter.default, parameter.min, parameter.max];
      if (!numbers.every(Number.isFinite)) throw new Error(`\`${name}\` needs numbers as default, min and max`);
      const inRange = parameter.min <= parameter.default && parameter.default <= parameter.max;
      if (!inRange) throw new Error(`the default of \`${name}\` is outside its range`);
      if (!parameter.doc || parameter.doc.includes("\n")) throw new Error(`\`${name}\` needs a doc of one line`);
    }
  }

  /** Returns the policy's description. The build passes the package's name and version. */
  describe(name = "policy", version = "0.0.0") {
    const parameters = Object.entries(this.parameters).map(([name, parameter]) => ({ name, ...parameter }));
    return { name, version, features: this.features, parameters, explains: this.explains };
  }

  params(values) {
    if (values.length !== this.parameterNames.length) throw new Error("not as many parameters as declared");
    return Object.fromEntries(this.parameterNames.map((name, at) => [name, values[at]]));
  }

  columns({ postIds, authorIds, createdAtMs, features, scores }) {
    const length = postIds.length;
    if (features.length !== length * this.features.length) throw new Error("not as many feature columns as declared");
    const posts = { length, postIds, authorIds, createdAtMs };
    if (scores !== undefined) posts.scores = scores;
    this.features.forEach((name, k) => {
      posts[name] = features.subarray(k * length, (k + 1) * length);
    });
    return posts;
  }
}

/** Returns one score per candidate: the sum of its parts. */
class Scorer extends Policy {
  constructor({ each, batch, explains = [], ...declared }) {
    super("score", declared, explains);
    if ((each === undefined) === (batch === undefined)) throw new Error("a scorer has one rule: `each` or `batch`");
    if (explains.length === 0) throw new Error("`explains` names the parts of a score, at least one");
    Object.assign(this, { each, batch });
  }

  /** Calls `take` with the index and the parts of each candidate. */
  rows(request, values, candidates, take) {
    const [params, posts] = [this.params(values), this.columns(candidates)];
    if (this.batch !== undefined) {
      const rows = this.batch(posts, params, request);
      if (rows?.length !== posts.length) {
        throw new Error(`the rule returned ${count(rows)} rows for ${posts.length} candidates; return one for each`);
      }
      // Not `forEach`, which leaves out the holes of a sparse array.
      for (let index = 0; index < posts.length; index++) take(index, this.checked(rows[index], index));
      return;
    }
    // Plain indices, because this code is interpreted: an iterator costs as much as the rule.
    const { postIds, authorIds, createdAtMs } = posts;
    const [each, names] = [this.each, this.features];
    const columns = names.map((name) => posts[name]);
    for (let index = 0; index < posts.length; index++) {
      const post = { postId: postIds[index], authorId: authorIds[index], createdAtMs: createdAtMs[index] };
      for (let k = 0; k < names.length; k++) post[names[k]] = columns[k][index];
      take(index, this.checked(each(post, params, request), index));
    }
  }

  /**
   * Returns a candidate's parts if they are a number for each name in `explains`. JavaScript would
   * turn `null` into 0 and text into a number, so a mistake would look like a score.
   */
  checked(row, index) {
    const parts = this.explains.length;
    if (row?.length !== parts) {
      throw new Error(`the rule returned ${count(row)} parts for candidate ${index}; return ${parts} parts, as \`explains\` declares`);
    }
    for (let part = 0; part < parts; part++) {
      if (typeof row[part] !== "number") {
        throw new Error(`the rule returned ${shown(row[part])} as \`${this.explains[part]}\` of candidate ${index}; return a number`);
      }
    }
    return row;
  }

  /** Returns one score per candidate. Higher is better. */
  score(request, params, candidates) {
    const scores = new Float32Array(candidates.postIds.length);
    this.rows(request, params, candidates, (index, row) => {
      let sum = row[0];
      for (let part = 1; part < row.length; part++) sum += row[part];
      scores[index] = sum;
    });
    return scores;
  }

  /** Returns the parts of the scores, column by column. */
  explain(request, params, candidates) {
    const [n, parts] = [candidates.postIds.length, this.explains.length];
    const columns = new Float32Array(n * parts);
    this.rows(request, params, candidates, (index, row) => {
      for (let part = 0; part < parts; part++) columns[part * n + index] = row[part];
    });
    return columns;
  }
}

/** The common part of dedupers and saturators: a result of indices, and reasons by name. */
class Order extends Policy {
  constructor(stage, rule, whyByItself, ownReasons, { reasons, explain: why, ...declared }) {
    if ((reasons === undefined) !== (why === undefined)) throw new Error("`reasons` and `explain` go together");
    super(stage, declared, Object.values(reasons ?? ownReasons));
    Object.assign(this, { rule, why, whyByItself, reasonNames: Object.keys(reasons ?? ownReasons) });
  }

  /** Returns the rule's indices. `Uint32Array` would turn `undefined` into 0 and 1.9 into 1. */
  indices(request, params, candidates) {
    const n = candidates.postIds.length;
    const answer = listed(this.rule(this.columns(candidates), this.params(params), request), "indices");
    answer.forEach((index, position) => {
      if (!Number.isInteger(index) || index < 0 || index >= n) {
        throw new Error(`the rule returned ${shown(index)} at position ${position}; return indices of the ${n} candidates, whole numbers from 0`);
      }
    });
    return Uint32Array.from(answer);
  }

  /** Returns one reason code per candidate, which is an index into `explains`. */
  explain(request, params, candidates) {
    const n = candidates.postIds.length;
    const names = this.why
      ? listed(this.why(this.columns(candidates), this.params(params), request), "reasons")
      : this.whyByItself(n, this.indices(request, params, candidates));
    if (names.length !== n) {
      throw new Error(`\`explain\` returned ${names.length} reasons for ${n} candidates; return one for each`);
    }
    return Uint32Array.from(names, (name) => {
      const code = this.reasonNames.indexOf(name);
      if (code < 0) throw new Error(`\`explain\` returned ${shown(name)}, which is not among the declared reasons`);
      return code;
    });
  }
}

/** Returns the indices of the candidates to keep, each at most once. */
class Deduper extends Order {
  constructor({ dedup, ...declared }) {
    const why = (n, kept) => {
      const keeps = new Set(kept);
      return Array.from({ length: n }, (_, index) => (keeps.has(index) ? "kept" : "removed"));
    };
    super("dedup", dedup, why, { kept: "kept", removed: "removed" }, declared);
  }

  dedup(request, params, candidates) {
    return this.indices(request, params, candidates);
  }
}

/** Returns the order to show: the index to show at each position. */
class Saturator extends Order {
  constructor({ saturate, ...declared }) {
    const why = (n, order) => {
      const names = new Array(n).fill("stayed");
      order.forEach((index, position) => {
        if (position !== index) names[index] = position < index ? "up" : "down";
      });
      return names;
    };
    super("saturation", saturate, why, { stayed: "stayed", up: "moved up", down: "moved down" }, declared);
  }

  saturate(request, params, ranked) {
    return this.indices(request, params, ranked);
  }
}

/**
 * Creates a scorer. The rule returns the parts of a candidate's score in the order of `explains`.
 * The score is their sum.
 *
 * `each(post, params, request)` returns the parts of one candidate. `batch(posts, params, request)`
 * returns an array with the parts of every candidate, for scores that depend on the others.
 */
export const scorer = (declared) => new Scorer(declared);

/**
 * Creates a deduper. `dedup(posts, params, request)` returns the indices to keep, each at most
 * once, and at least one if there are candidates.
 *
 * Reasons are optional. With `reasons: { seen: "seen within a day", … }`,
 * `explain(posts, params, request)` returns one of these names for each candidate.
 */
export const deduper = (declared) => new Deduper(declared);

/**
 * Creates a saturator. `saturate(posts, params, request)` returns the index to show at each
 * position, every index once. Candidates come in the order of their scores, best first.
 *
 * Reasons are optional. With `reasons: { deferred: "its author was just shown", … }`,
 * `explain(posts, params, request)` returns one of these names for each candidate, by index.
 */
export const saturator = (declared) => new Saturator(declared);
