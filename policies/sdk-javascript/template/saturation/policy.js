/** Never two posts of one author in a row, as long as another author has one left. */

import { saturator } from "./nova-policy/index.js";

/** Position by position, the index to show there. Candidates come best first. */
function alternate(posts, params, request) {
  const order = [];
  // Everything deferred at one time is by the author shown last, so one queue is enough.
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
