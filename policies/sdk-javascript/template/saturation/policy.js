/** Never shows two posts of one author in a row, as long as another author has one left. */

import { saturator } from "./nova-policy/index.js";

/** Returns the index to show at each position. Candidates come best first. */
function alternate(posts, params, request) {
  const order = [];
  // All deferred posts are by the author shown last, so one queue is enough.
  const deferred = [];
  const repeats = (index) => order.length > 0 && posts.authorIds[order.at(-1)] === posts.authorIds[index];
  for (let index = 0; index < posts.length; index++) {
    if (repeats(index)) {
      deferred.push(index);
      continue;
    }
    order.push(index);
    if (deferred.length > 0 && !repeats(deferred[0])) order.push(deferred.shift());
  }
  return [...order, ...deferred];
}

export const policy = saturator({ saturate: alternate });
