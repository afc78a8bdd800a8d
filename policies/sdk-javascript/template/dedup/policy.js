/** Removes posts that the viewer has seen, unless too few others would remain. */

import { deduper } from "./nova-policy/index.js";

/** Returns the indices to keep. The host refuses an empty result if there are candidates. */
function unseen(posts, params, request) {
  const all = [...Array(posts.length).keys()];
  const kept = all.filter((index) => posts.seen[index] === 0);
  return kept.length < params.min_results ? all : kept;
}

export const policy = deduper({
  features: ["seen"],
  parameters: {
    min_results: { default: 20, min: 1, max: 1000, doc: "With fewer unseen posts than this, everything is kept." },
  },
  dedup: unseen,
});
