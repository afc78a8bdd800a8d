/** Newer posts first, and likes help. */

import { scorer } from "./nova-policy/index.js";

/** The score of a post is the sum of its parts. */
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
