import assert from "node:assert/strict";
import { test } from "node:test";
import { Sample } from "./nova-policy/testing.js";
import { policy } from "./policy.js";

test("a post is worth half after its half life", () => {
  const posts = new Sample(policy).row({ age_hours: 0 }).row({ age_hours: 12 });
  assert.deepEqual(posts.score(), [1, 0.5]);
});
