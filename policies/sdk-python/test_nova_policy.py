import unittest

from nova_policy import Parameter, deduper, saturator, scorer
from nova_policy.testing import Sample


class Scorer(unittest.TestCase):
    def test_a_batch_rule_sees_all_candidates_as_columns_and_its_parts_add_up(self):
        def share_of_likes(posts, params, request):
            total = sum(posts.likes)
            return [(likes / total, params.base) for likes in posts.likes]

        policy = scorer(
            features=["age_hours", "likes"],
            parameters={"base": Parameter(1.0, min=0.0, max=2.0, doc="Added.")},
            explains=["share", "base"],
            batch=share_of_likes,
        )
        posts = Sample(policy).row(likes=1).row(likes=3).param("base", 0.5)
        self.assertEqual(posts.score(), [0.75, 1.25])
        self.assertEqual(posts.explain(), {"share": [0.25, 0.75], "base": [0.5, 0.5]})

    def test_a_rule_sees_the_candidates_ids_and_the_request(self):
        policy = scorer(explains=["own"], each=lambda post, params, request: [float(post.author_id == request.user_id)])
        self.assertEqual(Sample(policy).post(5, 1, 0).post(6, 2, 0).score(), [1.0, 0.0])

    def test_a_row_of_another_length_than_declared_is_an_error(self):
        policy = scorer(explains=["a", "b"], each=lambda post, params, request: [1.0])
        with self.assertRaisesRegex(ValueError, "2 parts"):
            Sample(policy).row().score()

    def test_an_invalid_declaration_is_an_error_at_once(self):
        outside = Parameter(3.0, min=0.0, max=2.0, doc="Too large.")
        for wrong in [
            {"explains": ["a"]},
            {"explains": [], "each": len},
            {"explains": ["a"], "each": len, "features": ["likes", "likes"]},
            {"explains": ["a"], "each": len, "parameters": {"w": outside}},
            {"explains": ["a"], "each": len, "parameters": {"w": outside._replace(default=1.0, doc="")}},
        ]:
            with self.assertRaises(ValueError, msg=wrong):
                scorer(**wrong)

    def test_values_and_features_that_are_not_declared_are_errors(self):
        policy = scorer(explains=["a"], each=lambda post, params, request: [0.0])
        with self.assertRaises(ValueError):
            Sample(policy).row(likes=1)
        with self.assertRaises(KeyError):
            Sample(policy).param("w", 1.0)


class Reasons(unittest.TestCase):
    def test_a_deduper_without_reasons_reports_kept_and_removed(self):
        policy = deduper(dedup=lambda posts, params, request: [2, 0])
        posts = Sample(policy).row().row().row()
        self.assertEqual((posts.dedup(), posts.explain()), ([2, 0], ["kept", "removed", "kept"]))

    def test_a_saturator_without_reasons_reports_movements(self):
        policy = saturator(saturate=lambda posts, params, request: [0, 2, 1])
        self.assertEqual(Sample(policy).row().row().row().explain(), ["stayed", "moved down", "moved up"])

    def test_declared_reasons_are_returned_as_their_texts(self):
        policy = saturator(
            saturate=lambda posts, params, request: range(posts.len),
            reasons={"good": "scored above 1", "rest": "the rest"},
            explain=lambda posts, params, request: ["good" if score > 1 else "rest" for score in posts.scores],
        )
        posts = Sample(policy).post(1, 1, 0, score=2).post(2, 2, 0, score=0.5)
        self.assertEqual(posts.explain(), ["scored above 1", "the rest"])
        self.assertEqual(policy.describe("p", "1.0.0").explains, ["scored above 1", "the rest"])


if __name__ == "__main__":
    unittest.main()
