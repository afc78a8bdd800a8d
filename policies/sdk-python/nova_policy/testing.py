"""Unit tests of a policy in a few lines, without WebAssembly.

    sample = Sample(policy).row(likes=3).row(likes=5)
    assert sample.score() == [3.0, 5.0]
"""

from array import array
from collections import namedtuple

Request = namedtuple("Request", "user_id now_ms seed limit")
Candidates = namedtuple("Candidates", "post_ids author_ids created_at_ms features")
Ranked = namedtuple("Ranked", "post_ids author_ids created_at_ms features scores")


def single(values):
    """Rounds values to 32 bits, as the host does."""
    return array("f", values).tolist()


class Sample:
    """Candidates given row by row with named features. Parameters have their defaults."""

    def __init__(self, policy):
        self.policy = policy
        self.request = Request(user_id=1, now_ms=1_700_000_000_000, seed=0, limit=50)
        self._params = {name: parameter.default for name, parameter in policy.parameters.items()}
        self._posts = []

    def param(self, name, value):
        """Sets a declared parameter."""
        declared = self.policy.parameters[name]
        if not declared.min <= value <= declared.max:
            raise ValueError(f"`{name}` = {value} is outside {declared.min} … {declared.max}")
        self._params[name] = value
        return self

    def row(self, **features):
        """Adds a candidate with an id and an author of its own, created at the time of the request.
        A feature that is not named is 0."""
        number = len(self._posts) + 1
        return self.post(number, number, self.request.now_ms, **features)

    def post(self, post_id, author_id, created_at_ms, score=0.0, **features):
        """Adds a candidate; `score` is for a saturator."""
        unknown = set(features) - set(self.policy.features)
        if unknown:
            raise ValueError(f"not declared: {', '.join(sorted(unknown))}")
        row = [features.get(name, 0.0) for name in self.policy.features]
        self._posts.append((post_id, author_id, created_at_ms, score, row))
        return self

    def score(self):
        """Returns one score per candidate, in the order they were added."""
        self.explain()  # fails if the rule returns too few or too many parts
        return single(self.policy.score(*self._arguments()))

    def dedup(self):
        """Returns the indices that are kept."""
        return self.policy.dedup(*self._arguments())

    def saturate(self):
        """Returns the order to show. Candidates come in the order they were added."""
        return self.policy.saturate(*self._arguments())

    def explain(self):
        """Returns, for a scorer, a dictionary of columns by the names of its parts; for the other
        stages, the reason of each candidate."""
        answer = self.policy.explain(*self._arguments())
        names, n = self.policy.explains, len(self._posts)
        if self.policy.stage != "score":
            return [names[code] for code in answer]
        return {name: single(answer[part * n : (part + 1) * n]) for part, name in enumerate(names)}

    def _arguments(self):
        ids = [[post[column] for post in self._posts] for column in range(3)]
        rows = [post[4] for post in self._posts]
        features = single(row[k] for k in range(len(self.policy.features)) for row in rows)
        candidates = Candidates(*ids, features)
        if self.policy.stage == "saturation":
            candidates = Ranked(*candidates, single(post[3] for post in self._posts))
        return self.request, list(self._params.values()), candidates
