/** Removes what the viewer has seen, unless that would leave too little. */

import { deduper } from "./nova-policy/index.js";

/** Indices to keep. The host refuses an answer that leaves nothing of something. */
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
