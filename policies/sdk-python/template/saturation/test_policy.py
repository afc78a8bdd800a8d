import unittest

from nova_policy.testing import Sample
from policy import policy


class Alternation(unittest.TestCase):
    def test_another_authors_post_comes_between(self):
        posts = Sample(policy)
        for number, author in enumerate([7, 7, 7, 8, 9], start=1):
            posts.post(number, author, 0)
        self.assertEqual(posts.saturate(), [0, 3, 1, 4, 2])


if __name__ == "__main__":
    unittest.main()
