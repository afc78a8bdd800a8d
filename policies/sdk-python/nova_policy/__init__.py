"""The Python SDK for ranking policies of Nova: declare the inputs, then write a rule function.

    from nova_policy import Parameter, scorer

    def parts(post, params, request):
        return 2 ** (-post.age_hours / params.half_life_hours), 0.1 * post.likes

    policy = scorer(
        features=["age_hours", "likes"],
        parameters={"half_life_hours": Parameter(12.0, min=0.1, max=720.0, doc="Hours until worth half.")},
        explains=["freshness", "popularity"],
        each=parts,
    )

`scorer`, `deduper` and `saturator` return a policy with its stage's function (`score`, `dedup` or
`saturate`), `explain` and `describe`. A rule gets these arguments:

- `post`, one candidate: `post_id`, `author_id`, `created_at_ms` and the declared features; or
  `posts`, all candidates as columns: `posts.len`, `posts.post_ids`, `posts.author_ids`,
  `posts.created_at_ms` (for a saturator also `posts.scores`) and a list for each declared feature;
- `params`, the declared parameters by name;
- `request`: `user_id`, `now_ms`, `seed`, `limit`.

A policy is pure: the same arguments give the same result. It keeps no state between calls, reads no
clock, and creates a `random.Random(request.seed)` if it needs randomness.
"""

from collections import namedtuple
from functools import reduce
from operator import add
from typing import NamedTuple

__all__ = ["Parameter", "deduper", "saturator", "scorer"]

_IDS = ("post_id", "author_id", "created_at_ms")
_ID_COLUMNS = ("post_ids", "author_ids", "created_at_ms")


class Parameter(NamedTuple):
    """A number that a policy version may set, from `min` to `max` inclusive."""

    default: float
    min: float
    max: float
    doc: str


# The description that the host reads, with the fields of the contract's records.
ParameterDescription = namedtuple("ParameterDescription", "name default min max doc")
Description = namedtuple("Description", "name version features parameters explains")


def _shown(value):
    """Shows a value in an error message, in a few characters."""
    return repr(value)[:80]


def _listed(answer, what):
    """Returns a rule's answer as a list."""
    if isinstance(answer, str) or not hasattr(answer, "__iter__"):
        raise ValueError(f"the rule returned {_shown(answer)}; return a list of {what}")
    return list(answer)


class Policy:
    """The common part of the three stages: typed columns, typed parameters and `describe`."""

    stage = ""
    # Names of the columns between the ids and the features.
    given = ()

    def __init__(self, features, parameters, explains):
        self.features = tuple(features)
        self.parameters = dict(parameters)
        self.explains = tuple(explains)
        for name, parameter in self.parameters.items():
            if not parameter.min <= parameter.default <= parameter.max:
                raise ValueError(f"the default of `{name}` is outside its range")
            if not parameter.doc or "\n" in parameter.doc:
                raise ValueError(f"`{name}` needs a doc of one line")
        # `namedtuple` rejects duplicate and invalid names.
        self._params = namedtuple("Params", self.parameters)
        self._post = namedtuple("Post", (*_IDS, *self.features))
        self._columns = namedtuple("Columns", ("len", *_ID_COLUMNS, *self.given, *self.features))

    def describe(self, name="policy", version="0.0.0"):
        """Returns the policy's description. The build passes the project's name and version."""
        parameters = [ParameterDescription(name, *map(float, p[:3]), p.doc) for name, p in self.parameters.items()]
        return Description(name, version, list(self.features), parameters, list(self.explains))

    def _feature_columns(self, candidates):
        n, matrix = len(candidates.post_ids), candidates.features
        if len(matrix) != n * len(self.features):
            raise ValueError("not as many feature columns as declared")
        return [matrix[k * n : (k + 1) * n] for k in range(len(self.features))]

    def _ids(self, candidates):
        return [getattr(candidates, column) for column in _ID_COLUMNS]

    def _all(self, candidates):
        given = [getattr(candidates, column) for column in self.given]
        columns = (*self._ids(candidates), *given, *self._feature_columns(candidates))
        return self._columns(len(candidates.post_ids), *columns)

    def _each(self, candidates):
        # `zip` creates the tuples without running a line of Python per candidate.
        columns = (*self._ids(candidates), *self._feature_columns(candidates))
        return map(self._post._make, zip(*columns))


class Scorer(Policy):
    """Returns one score per candidate: the sum of its parts."""

    stage = "score"

    def __init__(self, features, parameters, explains, each, batch):
        super().__init__(features, parameters, explains)
        if (each is None) == (batch is None):
            raise ValueError("a scorer has one rule: `each` or `batch`")
        if not self.explains:
            raise ValueError("`explains` names the parts of a score, at least one")
        self._rule_each, self._rule_batch = each, batch

    def _rows(self, request, params, candidates):
        params, parts = self._params(*params), len(self.explains)
        if self._rule_batch is not None:
            n = len(candidates.post_ids)
            rows = _listed(self._rule_batch(self._all(candidates), params, request), "rows")
            if len(rows) != n:
                raise ValueError(f"the rule returned {len(rows)} rows for {n} candidates; return one for each")
        else:
            rule = self._rule_each
            rows = [rule(post, params, request) for post in self._each(candidates)]
        for index, row in enumerate(rows):
            if not hasattr(row, "__len__") or isinstance(row, str) or len(row) != parts:
                raise ValueError(
                    f"the rule returned {_shown(row)} for candidate {index}; "
                    f"return {parts} parts, as `explains` declares"
                )
        return rows

    def score(self, request, params, candidates):
        """Returns one score per candidate. Higher is better."""
        # `sum` rounds differently between Python versions and from the other languages.
        return [self._number(reduce(add, row), row) for row in self._rows(request, params, candidates)]

    def explain(self, request, params, candidates):
        """Returns the parts of the scores, column by column."""
        rows = self._rows(request, params, candidates)
        return [self._number(row[part], row) for part in range(len(self.explains)) for row in rows]

    @staticmethod
    def _number(value, row):
        # `float` would also accept text.
        if type(value) is not float and not isinstance(value, (int, float)):
            raise ValueError(f"the rule returned {_shown(row)}; return numbers")
        return float(value)


class _Order(Policy):
    """The common part of dedupers and saturators: a result of indices, and reasons by name."""

    own_reasons = {}

    def __init__(self, features, parameters, rule, reasons, explain):
        if (reasons is None) != (explain is None):
            raise ValueError("`reasons` and `explain` go together")
        self._reasons = reasons if reasons is not None else self.own_reasons
        super().__init__(features, parameters, self._reasons.values())
        self._rule, self._why = rule, explain

    def _indices(self, request, params, candidates):
        n = len(candidates.post_ids)
        answer = _listed(self._rule(self._all(candidates), self._params(*params), request), "indices")
        for position, index in enumerate(answer):
            if type(index) is not int or not 0 <= index < n:
                raise ValueError(
                    f"the rule returned {_shown(index)} at position {position}; "
                    f"return indices of the {n} candidates, whole numbers from 0"
                )
        return answer

    def explain(self, request, params, candidates):
        """Returns one reason code per candidate, which is an index into `explains`."""
        n = len(candidates.post_ids)
        if self._why is None:
            names = self._why_by_itself(n, self._indices(request, params, candidates))
        else:
            names = _listed(self._why(self._all(candidates), self._params(*params), request), "reasons")
        if len(names) != n:
            raise ValueError(f"`explain` returned {len(names)} reasons for {n} candidates; return one for each")
        codes = {name: code for code, name in enumerate(self._reasons)}
        for name in names:
            if not isinstance(name, str) or name not in codes:
                raise ValueError(f"`explain` returned {_shown(name)}, which is not among the declared reasons")
        return [codes[name] for name in names]


class Deduper(_Order):
    """Returns the indices of the candidates to keep, each at most once."""

    stage = "dedup"
    own_reasons = {"kept": "kept", "removed": "removed"}

    def dedup(self, request, params, candidates):
        """Returns the indices to keep."""
        return self._indices(request, params, candidates)

    @staticmethod
    def _why_by_itself(n, kept):
        kept = set(kept)
        return ["kept" if index in kept else "removed" for index in range(n)]


class Saturator(_Order):
    """Returns the order to show: the index to show at each position."""

    stage = "saturation"
    given = ("scores",)
    own_reasons = {"stayed": "stayed", "up": "moved up", "down": "moved down"}

    def saturate(self, request, params, ranked):
        """Returns a permutation of the indices."""
        return self._indices(request, params, ranked)

    @staticmethod
    def _why_by_itself(n, order):
        position_of = {index: position for position, index in enumerate(order)}

        def reason(index):
            moved = position_of.get(index, index) - index
            return "stayed" if moved == 0 else "up" if moved < 0 else "down"

        return [reason(index) for index in range(n)]


def scorer(*, explains, features=(), parameters=(), each=None, batch=None):
    """Creates a scorer. The rule returns the parts of a candidate's score in the order of
    `explains`. The score is their sum.

    `each(post, params, request)` returns the parts of one candidate. `batch(posts, params,
    request)` returns a list with the parts of every candidate, for scores that depend on the
    others.
    """
    return Scorer(features, parameters, explains, each, batch)


def deduper(*, dedup, features=(), parameters=(), reasons=None, explain=None):
    """Creates a deduper. `dedup(posts, params, request)` returns the indices to keep, each at most
    once, and at least one if there are candidates.

    Reasons are optional. With `reasons={"seen": "seen within a day", …}`,
    `explain(posts, params, request)` returns one of these names for each candidate.
    """
    return Deduper(features, parameters, dedup, reasons, explain)


def saturator(*, saturate, features=(), parameters=(), reasons=None, explain=None):
    """Creates a saturator. `saturate(posts, params, request)` returns the index to show at each
    position, every index once. Candidates come in the order of their scores, best first.

    Reasons are optional. With `reasons={"deferred": "its author was just shown", …}`,
    `explain(posts, params, request)` returns one of these names for each candidate, by index.
    """
    return Saturator(features, parameters, saturate, reasons, explain)
