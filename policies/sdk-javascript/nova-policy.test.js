import assert from "node:assert/strict";
import { test } from "node:test";
import { deduper, saturator, scorer } from "./nova-policy/index.js";
import { Sample } from "./nova-policy/testing.js";

test("a batch rule sees all candidates as columns, and its parts add up", () => {
  const policy = scorer({
    features: ["age_hours", "likes"],
    parameters: { base: { default: 1, min: 0, max: 2, doc: "Added." } },
    explains: ["share", "base"],
    batch: (posts, params) => {
      const total = posts.likes.reduce((sum, likes) => sum + likes, 0);
      return Array.from(posts.likes, (likes) => [likes / total, params.base]);
    },
  });
  const posts = new Sample(policy).row({ likes: 1 }).row({ likes: 3 }).param("base", 0.5);
  assert.deepEqual(posts.score(), [0.75, 1.25]);
  assert.deepEqual(posts.explain(), { share: [0.25, 0.75], base: [0.5, 0.5] });
});

test("a rule sees the candidates' ids and the request", () => {
  const own = (post, params, request) => [Number(post.authorId === request.userId)];
  const policy = scorer({ explains: ["own"], each: own });
  assert.deepEqual(new Sample(policy).post(5, 1, 0).post(6, 2, 0).score(), [1, 0]);
});

/** The arguments of a stage function, which the host calls without `explain`. */
const called = (policy, rows = 2) => {
  const sample = new Sample(policy);
  for (let row = 0; row < rows; row++) sample.row();
  return sample.arguments();
};

test("a score of anything but one number for each declared part is an error", () => {
  const rows = [[1], [1, 2, 3], [], undefined, null, 7, "12", [1, undefined], [null, 1], [1, "2"], [true, 1], [1, 2n], [, 1]];
  for (const row of rows) {
    for (const rule of [{ each: () => row }, { batch: () => [[1, 2], row] }]) {
      const policy = scorer({ explains: ["a", "b"], ...rule });
      for (const stage of ["score", "explain"]) {
        assert.throws(() => policy[stage](...called(policy)), /the rule returned .*; return /, String(row));
      }
    }
  }
});

test("a batch rule that leaves out candidates is an error", () => {
  for (const rows of [[], [[1]], [[1], [1], [1]], undefined, new Array(2)]) {
    const policy = scorer({ explains: ["a"], batch: () => rows });
    for (const stage of ["score", "explain"]) {
      assert.throws(() => policy[stage](...called(policy)), /the rule returned .*; return /, String(rows));
    }
  }
});

test("scores that are not finite reach the host, which counts them", () => {
  const policy = scorer({ explains: ["a"], each: (post) => [post.postId === 1n ? NaN : 1e300] });
  assert.deepEqual([...policy.score(...called(policy))], [NaN, Infinity]);
});

test("an index of anything but a candidate is an error", () => {
  const answers = [undefined, null, 1, "01", [undefined], [1.9], [-1], [2], [2 ** 32], [NaN], ["1"], [1n], [true], [null], new Array(2)];
  for (const answer of answers) {
    for (const policy of [deduper({ dedup: () => answer }), saturator({ saturate: () => answer })]) {
      const stage = policy.stage === "dedup" ? "dedup" : "saturate";
      for (const call of [stage, "explain"]) {
        assert.throws(() => policy[call](...called(policy)), /the rule returned .*; return /, String(answer));
      }
    }
  }
  const typed = deduper({ dedup: () => Uint8Array.of(1, 0) });
  assert.deepEqual([...typed.dedup(...called(typed))], [1, 0]);
});

test("a number of reasons other than that of the candidates is an error", () => {
  for (const names of [[], ["a"], ["a", "a", "a"], undefined, "aa", ["a", "b"], new Array(2)]) {
    const policy = deduper({ dedup: () => [0], reasons: { a: "text" }, explain: () => names });
    assert.throws(() => policy.explain(...called(policy)), /returned .*(return|declared)/, String(names));
  }
});

test("an invalid declaration is an error at once", () => {
  const each = () => [0];
  const outside = { default: 3, min: 0, max: 2, doc: "Too large." };
  for (const wrong of [
    { explains: ["a"] },
    { explains: [], each },
    { explains: ["a"], each, features: ["likes", "likes"] },
    { explains: ["a"], each, parameters: { w: outside } },
    { explains: ["a"], each, parameters: { w: { default: 1, max: 2, doc: "No least value." } } },
    { explains: ["a"], each, parameters: { w: { ...outside, default: 1, doc: "" } } },
    { explains: ["a"], each, parameters: { w: { ...outside, default: "1" } } },
    { explains: ["a"], each, parameters: { w: { ...outside, default: 1, max: Infinity } } },
  ]) {
    assert.throws(() => scorer(wrong), Error, JSON.stringify(wrong));
  }
});

test("values and features that are not declared are errors", () => {
  const policy = scorer({ explains: ["a"], each: () => [0] });
  assert.throws(() => new Sample(policy).row({ likes: 1 }));
  assert.throws(() => new Sample(policy).param("w", 1));
});

test("without reasons a deduper reports kept and removed, a saturator reports movements", () => {
  const keeping = new Sample(deduper({ dedup: () => [2, 0] })).row().row().row();
  assert.deepEqual(keeping.dedup(), [2, 0]);
  assert.deepEqual(keeping.explain(), ["kept", "removed", "kept"]);
  const moving = new Sample(saturator({ saturate: () => [0, 2, 1] })).row().row().row();
  assert.deepEqual(moving.explain(), ["stayed", "moved down", "moved up"]);
});

test("declared reasons are returned as their texts", () => {
  const policy = saturator({
    saturate: (posts) => [...Array(posts.length).keys()],
    reasons: { good: "scored above 1", rest: "the rest" },
    explain: (posts) => Array.from(posts.scores, (score) => (score > 1 ? "good" : "rest")),
  });
  const posts = new Sample(policy).post(1, 1, 0, {}, 2).post(2, 2, 0, {}, 0.5);
  assert.deepEqual(posts.explain(), ["scored above 1", "the rest"]);
  assert.deepEqual(policy.describe("p", "1.0.0").explains, ["scored above 1", "the rest"]);
});
