import unittest

from nova_policy.testing import Sample
from policy import policy


class Freshness(unittest.TestCase):
    def test_a_post_is_worth_half_after_its_half_life(self):
        posts = Sample(policy).row(age_hours=0).row(age_hours=12)
        self.assertEqual(posts.score(), [1.0, 0.5])


if __name__ == "__main__":
    unittest.main()
