import assert from "node:assert/strict";
import { test } from "node:test";
import { Sample } from "./nova-policy/testing.js";
import { policy } from "./policy.js";

test("another author's post comes between", () => {
  const posts = new Sample(policy);
  [7, 7, 7, 8, 9].forEach((author, index) => posts.post(index + 1, author, 0));
  assert.deepEqual(posts.saturate(), [0, 3, 1, 4, 2]);
});
