"""Ranks proven posts first: the rate at which viewers of a post certainly react, plus freshness.

A post with 1 reaction of 1 viewer has a higher ratio than one with 90 of 100, but is not better.
The lower bound of Wilson's score interval says what the ratio is at least, given how few have
seen the post.

E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
the American Statistical Association 22 (1927), 209–212; for ranking: E. Miller, "How Not To Sort
By Average Rating" (2009).
"""

from math import sqrt

from nova_policy import Parameter, scorer


def wilson_lower_bound(successes, trials, z):
    """Returns the lower bound of the true success rate, `z` standard deviations down; 0 … 1."""
    if trials <= 0.0:
        return 0.0
    share = successes / trials
    z2 = z * z
    centre = share + z2 / (2.0 * trials)
    margin = z * sqrt((share * (1.0 - share) + z2 / (4.0 * trials)) / trials)
    return max((centre - margin) / (1.0 + z2 / trials), 0.0)


def parts(post, params, request):
    # One viewer may react more than once.
    reactions = min(post.likes + post.comments + post.shares, post.exposures)
    proven = params.w_proven * wilson_lower_bound(reactions, post.exposures, params.z)
    # The hyperbola needs no exponential, so it gives the same result in every language.
    fresh = params.w_fresh / (1.0 + max(post.age_hours, 0.0) / params.half_life_hours)
    return proven, fresh


policy = scorer(
    features=["age_hours", "likes", "comments", "shares", "exposures"],
    parameters={
        "w_proven": Parameter(1.0, min=0.0, max=100.0, doc="Weight of the share of viewers who surely react."),
        "w_fresh": Parameter(0.5, min=0.0, max=100.0, doc="Weight of freshness, which is 1 for a post of this moment."),
        "half_life_hours": Parameter(24.0, min=0.1, max=720.0, doc="Hours after which freshness is worth half."),
        "z": Parameter(1.96, min=0.0, max=5.0, doc="How sure: 1.96 leaves 2.5 % of doubt, 0 takes the plain ratio."),
    },
    explains=["proven", "fresh"],
    each=parts,
)
