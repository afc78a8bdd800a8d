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

test("a row of another length than declared is an error", () => {
  const policy = scorer({ explains: ["a", "b"], each: () => [1] });
  assert.throws(() => new Sample(policy).row().score(), /2 parts/);
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
