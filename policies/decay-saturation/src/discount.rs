//! The greedy order by effective score: `score · author_decay^k · impression_decay^impressions`,
//! where `k` is the number of posts by the author that are ranked higher.
//!
//! If multiplied out, the discount of a prolific author's thousandth post would underflow to zero,
//! and the rest would be tied. So effective scores are compared by sign and then by logarithm,
//! which is precise enough at any depth. A discount must lower a negative score too, which means
//! dividing it. It also orders scores of zero, which no factor could.

use crate::{Columns, Params};
use nova_policy_sdk::Request;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Returns the index to show at each position.
///
/// The order within one author never changes, because all remaining posts have the same discount.
/// So only the best remaining post of each author competes: `O(n log n)`.
pub fn saturate(posts: &Columns<'_>, params: &Params, _request: &Request) -> Vec<u32> {
    let per_post = params.author_decay.ln();
    let queue = by_author_best_first(posts, params);
    let mut best_of_authors: BinaryHeap<Contender> = queue
        .chunk_by(|a, b| a.author_id == b.author_id)
        .map(Contender::new)
        .collect();

    let mut order = Vec::with_capacity(posts.len);
    while let Some(best) = best_of_authors.pop() {
        order.push(best.post.rank);
        best_of_authors.extend(best.successor(per_post));
    }
    order
}

#[derive(Clone, Copy)]
struct Post {
    author_id: u64,
    score: Effective,
    rank: u32,
}

fn by_author_best_first(posts: &Columns<'_>, params: &Params) -> Vec<Post> {
    let per_impression = params.impression_decay.ln();
    let mut queue: Vec<Post> = (0u32..)
        .zip(
            posts
                .author_ids
                .iter()
                .zip(posts.scores)
                .zip(posts.author_recent_impressions),
        )
        .map(|(rank, ((&author_id, &score), &impressions))| {
            let score = Effective::new(score)
                .discounted(per_impression * f64::from(impressions.clamp(0.0, f32::MAX)));
            Post {
                author_id,
                score,
                rank,
            }
        })
        .collect();
    queue.sort_unstable_by_key(|post| (post.author_id, Reverse(post.score), post.rank));
    queue
}

/// The best remaining post of an author, and the author's posts after it.
struct Contender<'a> {
    post: Post,
    effective: Effective,
    waiting: &'a [Post],
    shown: u32,
}

impl<'a> Contender<'a> {
    fn new(posts: &'a [Post]) -> Self {
        Self {
            post: posts[0],
            effective: posts[0].score,
            waiting: &posts[1..],
            shown: 0,
        }
    }

    fn successor(&self, ln_decay_per_post: f64) -> Option<Self> {
        let (&post, waiting) = self.waiting.split_first()?;
        let shown = self.shown + 1;
        let effective = post.score.discounted(ln_decay_per_post * f64::from(shown));
        Some(Self {
            post,
            effective,
            waiting,
            shown,
        })
    }
}

/// If effective scores are equal, the better rank wins, so the order never depends on the heap.
impl Ord for Contender<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.effective
            .cmp(&other.effective)
            .then(other.post.rank.cmp(&self.post.rank))
    }
}

impl PartialOrd for Contender<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Contender<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Contender<'_> {}

/// A score as sign and logarithm. `level` grows with the score: `ln|score|` for positive scores,
/// `ln(1/|score|)` for negative ones and 0 for zero. A discount is added to it.
#[derive(Debug, Clone, Copy)]
struct Effective {
    sign: i8,
    level: f64,
}

impl Effective {
    fn new(score: f32) -> Self {
        let size = f64::from(score.abs());
        match score.partial_cmp(&0.0) {
            Some(Ordering::Greater) => Self {
                sign: 1,
                level: size.ln(),
            },
            Some(Ordering::Equal) => Self {
                sign: 0,
                level: 0.0,
            },
            // Not `-ln(size)`: that is -0.0 for a score of -1, which does not equal 0.0 below.
            Some(Ordering::Less) => Self {
                sign: -1,
                level: size.recip().ln(),
            },
            // The host lets no NaN through. Last is the position that it would give one.
            None => Self {
                sign: -2,
                level: 0.0,
            },
        }
    }

    fn discounted(self, ln_discount: f64) -> Self {
        Self {
            level: self.level + ln_discount,
            ..self
        }
    }
}

impl Ord for Effective {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sign
            .cmp(&other.sign)
            .then(self.level.total_cmp(&other.level))
    }
}

impl PartialOrd for Effective {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Effective {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Effective {}
