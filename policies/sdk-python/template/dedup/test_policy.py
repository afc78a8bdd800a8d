import unittest

from nova_policy.testing import Sample
from policy import policy


class Unseen(unittest.TestCase):
    def test_seen_posts_are_removed_only_while_enough_others_remain(self):
        posts = Sample(policy).row(seen=1).row(seen=0)
        self.assertEqual(posts.param("min_results", 1).dedup(), [1])
        self.assertEqual(posts.param("min_results", 2).dedup(), [0, 1])


if __name__ == "__main__":
    unittest.main()
