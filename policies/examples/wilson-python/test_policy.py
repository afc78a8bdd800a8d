import unittest

from nova_policy.testing import Sample
from policy import policy, wilson_lower_bound


class Proven(unittest.TestCase):
    def test_the_bound_matches_published_tables(self):
        # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29 at 95 %.
        for successes, trials, lower in [(81, 263, 0.2553), (15, 148, 0.0624), (0, 20, 0.0), (1, 29, 0.0061)]:
            self.assertAlmostEqual(wilson_lower_bound(successes, trials, 1.959964), lower, delta=5e-5)

    def test_one_of_one_ranks_below_ninety_of_a_hundred(self):
        posts = Sample(policy).row(likes=1, exposures=1).row(likes=90, exposures=100)
        lucky, proven = posts.score()
        self.assertLess(lucky, proven)

    def test_a_post_without_exposures_has_only_its_freshness(self):
        posts = Sample(policy).row(age_hours=0).row(age_hours=24)
        self.assertEqual(posts.explain(), {"proven": [0.0, 0.0], "fresh": [0.5, 0.25]})

    def test_more_reactions_than_viewers_count_as_all_of_them(self):
        posts = Sample(policy).row(likes=50, comments=50, exposures=10).row(likes=10, exposures=10)
        many, all_of_them = posts.score()
        self.assertEqual(many, all_of_them)


if __name__ == "__main__":
    unittest.main()
