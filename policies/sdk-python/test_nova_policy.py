import unittest

from nova_policy import Parameter, deduper, saturator, scorer
from nova_policy.testing import Sample


def called(policy, rows=2):
    """The arguments of a stage function, which the host calls without `explain`."""
    sample = Sample(policy)
    for _ in range(rows):
        sample.row()
    return sample._arguments()


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

    def test_a_score_of_anything_but_one_number_for_each_declared_part_is_an_error(self):
        for row in [[1.0], [1, 2, 3], [], None, 7, "12", ["1", "2"], [1.0, "2"], [None, 1.0], [1.0, 1j]]:
            for rule in [
                {"each": lambda post, params, request, row=row: row},
                {"batch": lambda posts, params, request, row=row: [[1.0, 2.0], row]},
            ]:
                policy = scorer(explains=["a", "b"], **rule)
                for stage in (policy.score, policy.explain):
                    with self.subTest(row=row), self.assertRaises((ValueError, TypeError)):
                        stage(*called(policy))

    def test_a_batch_rule_that_leaves_out_candidates_is_an_error(self):
        for rows in [[], [[1.0]], [[1.0]] * 3, None, "ab"]:
            policy = scorer(explains=["a"], batch=lambda posts, params, request, rows=rows: rows)
            for stage in (policy.score, policy.explain):
                with self.subTest(rows=rows), self.assertRaisesRegex(ValueError, "the rule returned .*; return"):
                    stage(*called(policy))

    def test_scores_that_are_not_finite_reach_the_host_which_counts_them(self):
        policy = scorer(explains=["a"], each=lambda post, params, request: [float("inf")])
        self.assertEqual(policy.score(*called(policy)), [float("inf")] * 2)

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

    def test_an_index_of_anything_but_a_candidate_is_an_error(self):
        for answer in [None, 1, "01", [None], [1.9], [1.0], [-1], [2], [2**32], ["1"], [True], [float("nan")]]:
            policies = [
                deduper(dedup=lambda posts, params, request, answer=answer: answer),
                saturator(saturate=lambda posts, params, request, answer=answer: answer),
            ]
            for policy in policies:
                stage = policy.dedup if policy.stage == "dedup" else policy.saturate
                for call in (stage, policy.explain):
                    with self.subTest(answer=answer), self.assertRaisesRegex(ValueError, "the rule returned .*; return"):
                        call(*called(policy))

    def test_a_number_of_reasons_other_than_that_of_the_candidates_is_an_error(self):
        for names in [[], ["a"], ["a"] * 3, None, "aa", ["a", "b"], ["a", None], ["a", []]]:
            policy = deduper(
                dedup=lambda posts, params, request: [0],
                reasons={"a": "text"},
                explain=lambda posts, params, request, names=names: names,
            )
            with self.subTest(names=names), self.assertRaisesRegex(ValueError, "returned .*(return|declared)"):
                policy.explain(*called(policy))

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
