/**
 * Ranks proven posts first: the rate at which viewers of a post certainly react, plus freshness.
 *
 * A post with 1 reaction of 1 viewer has a higher ratio than one with 90 of 100, but is not better.
 * The lower bound of Wilson's score interval says what the ratio is at least, given how few have
 * seen the post.
 *
 * E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
 * the American Statistical Association 22 (1927), 209–212; for ranking: E. Miller, "How Not To Sort
 * By Average Rating" (2009).
 */

import { scorer } from "./nova-policy/index.js";

/** Returns the lower bound of the true success rate, `z` standard deviations down; 0 … 1. */
export function wilsonLowerBound(successes, trials, z) {
  if (trials <= 0) return 0;
  const share = successes / trials;
  const z2 = z * z;
  const centre = share + z2 / (2 * trials);
  const margin = z * Math.sqrt((share * (1 - share) + z2 / (4 * trials)) / trials);
  return Math.max((centre - margin) / (1 + z2 / trials), 0);
}

function parts(post, params, request) {
  // One viewer may react more than once.
  const reactions = Math.min(post.likes + post.comments + post.shares, post.exposures);
  const proven = params.w_proven * wilsonLowerBound(reactions, post.exposures, params.z);
  // The hyperbola needs no exponential, so it gives the same result in every language.
  const fresh = params.w_fresh / (1 + Math.max(post.age_hours, 0) / params.half_life_hours);
  return [proven, fresh];
}

export const policy = scorer({
  features: ["age_hours", "likes", "comments", "shares", "exposures"],
  parameters: {
    w_proven: { default: 1, min: 0, max: 100, doc: "Weight of the share of viewers who surely react." },
    w_fresh: { default: 0.5, min: 0, max: 100, doc: "Weight of freshness, which is 1 for a post of this moment." },
    half_life_hours: { default: 24, min: 0.1, max: 720, doc: "Hours after which freshness is worth half." },
    z: { default: 1.96, min: 0, max: 5, doc: "How sure: 1.96 leaves 2.5 % of doubt, 0 takes the plain ratio." },
  },
  explains: ["proven", "fresh"],
  each: parts,
});
