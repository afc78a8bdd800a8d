"""Removes posts that the viewer has seen, unless too few others would remain."""

from nova_policy import Parameter, deduper


def unseen(posts, params, request):
    """Returns the indices to keep. The host refuses an empty result if there are candidates."""
    kept = [index for index in range(posts.len) if posts.seen[index] == 0.0]
    return kept if len(kept) >= params.min_results else range(posts.len)


policy = deduper(
    features=["seen"],
    parameters={
        "min_results": Parameter(20, min=1, max=1000, doc="With fewer unseen posts than this, everything is kept."),
    },
    dedup=unseen,
)
