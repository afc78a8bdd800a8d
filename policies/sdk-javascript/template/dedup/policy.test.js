import assert from "node:assert/strict";
import { test } from "node:test";
import { Sample } from "./nova-policy/testing.js";
import { policy } from "./policy.js";

test("seen posts are removed only while enough others remain", () => {
  const posts = new Sample(policy).row({ seen: 1 }).row({ seen: 0 });
  assert.deepEqual(posts.param("min_results", 1).dedup(), [1]);
  assert.deepEqual(posts.param("min_results", 2).dedup(), [0, 1]);
});
