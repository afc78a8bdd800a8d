import assert from "node:assert/strict";
import { test } from "node:test";
import { Sample } from "./nova-policy/testing.js";
import { policy, wilsonLowerBound } from "./policy.js";

test("the bound matches published tables", () => {
  // Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29 at 95 %.
  for (const [successes, trials, lower] of [[81, 263, 0.2553], [15, 148, 0.0624], [0, 20, 0], [1, 29, 0.0061]]) {
    assert.ok(Math.abs(wilsonLowerBound(successes, trials, 1.959964) - lower) < 5e-5, `${successes} of ${trials}`);
  }
});

test("one of one ranks below ninety of a hundred", () => {
  const [lucky, proven] = new Sample(policy)
    .row({ likes: 1, exposures: 1 })
    .row({ likes: 90, exposures: 100 })
    .score();
  assert.ok(lucky < proven);
});

test("a post without exposures has only its freshness", () => {
  const posts = new Sample(policy).row({ age_hours: 0 }).row({ age_hours: 24 });
  assert.deepEqual(posts.explain(), { proven: [0, 0], fresh: [0.5, 0.25] });
});

test("more reactions than viewers count as all of them", () => {
  const [many, allOfThem] = new Sample(policy)
    .row({ likes: 50, comments: 50, exposures: 10 })
    .row({ likes: 10, exposures: 10 })
    .score();
  assert.equal(many, allOfThem);
});
