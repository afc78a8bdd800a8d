"""Ranks newer posts first, and posts with more likes higher."""

from math import log1p

from nova_policy import Parameter, scorer


def parts(post, params, request):
    """Returns the parts of a post's score, which is their sum."""
    freshness = 2.0 ** (-max(post.age_hours, 0.0) / params.half_life_hours)
    popularity = params.like_weight * log1p(max(post.likes, 0.0))
    return freshness, popularity


policy = scorer(
    features=["age_hours", "likes"],
    parameters={
        "half_life_hours": Parameter(12.0, min=0.1, max=720.0, doc="Hours after which a post is worth half."),
        "like_weight": Parameter(0.1, min=0.0, max=10.0, doc="What likes count against freshness."),
    },
    explains=["freshness", "popularity"],
    each=parts,
)
