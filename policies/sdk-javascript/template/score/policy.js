/** Ranks newer posts first, and posts with more likes higher. */

import { scorer } from "./nova-policy/index.js";

/** Returns the parts of a post's score, which is their sum. */
function parts(post, params, request) {
  const freshness = 2 ** (-Math.max(post.age_hours, 0) / params.half_life_hours);
  const popularity = params.like_weight * Math.log1p(Math.max(post.likes, 0));
  return [freshness, popularity];
}

export const policy = scorer({
  features: ["age_hours", "likes"],
  parameters: {
    half_life_hours: { default: 12, min: 0.1, max: 720, doc: "Hours after which a post is worth half." },
    like_weight: { default: 0.1, min: 0, max: 10, doc: "What likes count against freshness." },
  },
  explains: ["freshness", "popularity"],
  each: parts,
});
