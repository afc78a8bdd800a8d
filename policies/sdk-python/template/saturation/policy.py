"""Never shows two posts of one author in a row, as long as another author has one left."""

from collections import deque

from nova_policy import saturator


def alternate(posts, params, request):
    """Returns the index to show at each position. Candidates come best first."""
    order = []
    # All deferred posts are by the author shown last, so one queue is enough.
    deferred = deque()

    def repeats(index):
        return bool(order) and posts.author_ids[order[-1]] == posts.author_ids[index]

    for index in range(posts.len):
        if repeats(index):
            deferred.append(index)
            continue
        order.append(index)
        if deferred and not repeats(deferred[0]):
            order.append(deferred.popleft())
    return order + list(deferred)


policy = saturator(saturate=alternate)
