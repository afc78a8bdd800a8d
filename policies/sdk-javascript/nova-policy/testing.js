/**
 * Unit tests of a policy in a few lines, without WebAssembly.
 *
 *     const sample = new Sample(policy).row({ likes: 3 }).row({ likes: 5 });
 *     assert.deepEqual(sample.score(), [3, 5]);
 */

/** Candidates given row by row with named features. Parameters have their defaults. */
export class Sample {
  constructor(policy) {
    this.policy = policy;
    this.request = { userId: 1n, nowMs: 1_700_000_000_000n, seed: 0n, limit: 50 };
    this.values = new Map(Object.entries(policy.parameters).map(([name, parameter]) => [name, parameter.default]));
    this.posts = [];
  }

  /** Sets a declared parameter. */
  param(name, value) {
    const declared = this.policy.parameters[name];
    if (declared === undefined) throw new Error(`no parameter \`${name}\` is declared`);
    const inRange = declared.min <= value && value <= declared.max;
    if (!inRange) throw new Error(`\`${name}\` = ${value} is outside ${declared.min} … ${declared.max}`);
    this.values.set(name, value);
    return this;
  }

  /**
   * Adds a candidate with an id and an author of its own, created at the time of the request. A
   * feature that is not named is 0.
   */
  row(features = {}) {
    const number = this.posts.length + 1;
    return this.post(number, number, this.request.nowMs, features);
  }

  /** Adds a candidate. A feature that is not named is 0. The score is for a saturator. */
  post(postId, authorId, createdAtMs, features = {}, score = 0) {
    for (const name of Object.keys(features)) {
      if (!this.policy.features.includes(name)) throw new Error(`no feature \`${name}\` is declared`);
    }
    const row = this.policy.features.map((name) => features[name] ?? 0);
    this.posts.push({ postId, authorId, createdAtMs, score, row });
    return this;
  }

  /** Returns one score per candidate, in the order they were added. */
  score() {
    this.explain(); // fails if the rule returns too few or too many parts
    return [...this.policy.score(...this.arguments())];
  }

  /** Returns the indices that are kept. */
  dedup() {
    return [...this.policy.dedup(...this.arguments())];
  }

  /** Returns the order to show. Candidates come in the order they were added. */
  saturate() {
    return [...this.policy.saturate(...this.arguments())];
  }

  /** Returns, for a scorer, columns by part name; for the other stages, each candidate's reason. */
  explain() {
    const answer = [...this.policy.explain(...this.arguments())];
    const [names, n] = [this.policy.explains, this.posts.length];
    if (this.policy.stage !== "score") return answer.map((code) => names[code]);
    return Object.fromEntries(names.map((name, part) => [name, answer.slice(part * n, (part + 1) * n)]));
  }

  arguments() {
    const ids = (name) => BigUint64Array.from(this.posts, (post) => BigInt(post[name]));
    const features = this.policy.features.flatMap((_, k) => this.posts.map((post) => post.row[k]));
    const candidates = {
      postIds: ids("postId"),
      authorIds: ids("authorId"),
      createdAtMs: ids("createdAtMs"),
      features: Float32Array.from(features),
    };
    if (this.policy.stage === "saturation") candidates.scores = Float32Array.from(this.posts, (post) => post.score);
    return [this.request, Float64Array.from(this.values.values()), candidates];
  }
}
