use decay_saturation::{describe, saturate};
use nova_policy_sdk::testing::Sample;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Post {
    author: u64,
    score: f32,
    impressions: f32,
}

fn post(author: u64, score: f32) -> Post {
    Post {
        author,
        score,
        impressions: 0.0,
    }
}

fn order(posts: &[Post], author_decay: f64, impression_decay: f64) -> Vec<u32> {
    let empty = Sample::new(describe())
        .param("author_decay", author_decay)
        .param("impression_decay", impression_decay);
    let sample = (1..).zip(posts).fold(empty, |sample, (id, post)| {
        let impressions = [("author_recent_impressions", post.impressions)];
        sample
            .post(id, post.author, 0, &impressions)
            .scored(post.score)
    });
    sample.saturate(saturate)
}

#[test]
fn a_slightly_better_second_post_gives_way_and_a_much_better_one_does_not() {
    assert_eq!(
        order(&[post(1, 1.0), post(1, 0.9), post(2, 0.8)], 0.7, 1.0),
        [0, 2, 1]
    );
    assert_eq!(
        order(&[post(1, 2.0), post(1, 1.9), post(2, 0.8)], 0.7, 1.0),
        [0, 1, 2]
    );
}

#[test]
fn each_further_post_counts_less() {
    // The scores are 8, 4, 2, 1 after the discount. The fourth is below 1.5, the third is not.
    let posts = [
        post(1, 8.0),
        post(1, 8.0),
        post(1, 8.0),
        post(1, 8.0),
        post(2, 1.5),
    ];
    assert_eq!(order(&posts, 0.5, 1.0), [0, 1, 2, 4, 3]);
}

#[test]
fn an_author_shown_often_today_is_ranked_lower() {
    let often = Post {
        impressions: 10.0,
        ..post(1, 1.0)
    };
    assert_eq!(order(&[often, post(2, 0.9)], 1.0, 0.97), [1, 0]);
    assert_eq!(order(&[often, post(2, 0.9)], 1.0, 1.0), [0, 1]);
}

#[test]
fn a_discount_lowers_negative_scores_too() {
    assert_eq!(
        order(&[post(1, -1.0), post(1, -1.1), post(2, -1.2)], 0.5, 1.0),
        [0, 2, 1]
    );
}

#[test]
fn equal_scores_alternate_between_authors_even_at_zero() {
    for score in [1.0, 0.0, -1.0] {
        let posts = [
            post(1, score),
            post(1, score),
            post(2, score),
            post(2, score),
        ];
        assert_eq!(order(&posts, 0.7, 1.0), [0, 2, 1, 3], "at {score}");
    }
}

#[test]
fn equal_scores_without_discount_stay_even_if_a_logarithm_is_minus_zero() {
    for score in [1.0, 0.0, -1.0] {
        let posts = [post(1, score), post(2, score), post(1, score)];
        assert_eq!(order(&posts, 1.0, 0.97), [0, 1, 2], "at {score}");
    }
}

#[test]
fn a_discount_never_lifts_a_score_above_one_of_higher_sign() {
    let often = Post {
        impressions: 1e9,
        ..post(1, 1e-30)
    };
    assert_eq!(
        order(&[often, post(2, 0.0), post(3, -1e-30)], 0.01, 0.01),
        [0, 1, 2]
    );
}

#[test]
fn the_thousandth_post_of_an_author_still_has_an_order() {
    // If multiplied out, all of these would underflow to zero and tie.
    let mut posts: Vec<Post> = (0..1000).map(|i| post(1, 1.0 - i as f32 * 1e-4)).collect();
    posts.extend((0..1000).map(|i| post(2, 0.9 - i as f32 * 1e-4)));
    let order = order(&posts, 0.01, 1.0);
    assert!(
        order
            .chunks(2)
            .all(|pair| pair[0] < 1000 && pair[1] == pair[0] + 1000)
    );
}

#[test]
fn nan_scores_come_last_and_no_post_is_lost() {
    let posts = [
        post(1, f32::NAN),
        post(2, f32::NEG_INFINITY),
        post(3, f32::INFINITY),
        post(1, 1.0),
    ];
    assert_eq!(order(&posts, 0.7, 0.97), [2, 3, 1, 0]);
}

#[test]
fn five_thousand_posts_take_milliseconds() {
    let posts: Vec<Post> = (0..5000).map(|i| post(i % 7, 5000.0 - i as f32)).collect();
    let start = std::time::Instant::now();
    assert_eq!(order(&posts, 0.7, 0.97).len(), 5000);
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

/// Multiplies the effective scores out, and searches all remaining posts for the best.
fn model(posts: &[Post], author_decay: f64, impression_decay: f64) -> Vec<u32> {
    let mut order: Vec<u32> = Vec::new();
    while order.len() < posts.len() {
        let effective = |index: u32| {
            let post = posts[index as usize];
            let above = order
                .iter()
                .filter(|&&at| posts[at as usize].author == post.author)
                .count();
            f64::from(post.score)
                * author_decay.powi(above as i32)
                * impression_decay.powf(f64::from(post.impressions))
        };
        let remaining = (0..posts.len() as u32).filter(|index| !order.contains(index));
        let best = remaining.reduce(|best, next| {
            if effective(next) > effective(best) {
                next
            } else {
                best
            }
        });
        order.push(best.expect("a post remains"));
    }
    order
}

fn posts(scores: impl Strategy<Value = f32> + Clone) -> impl Strategy<Value = Vec<Post>> {
    let post = (1u64..8, scores, 0u8..20);
    let post = post.prop_map(|(author, score, n)| Post {
        author,
        score,
        impressions: f32::from(n),
    });
    prop::collection::vec(post, 0..40)
}

proptest! {
    #[test]
    fn the_order_equals_the_greedy_order_by_discounted_score(
        posts in posts(0.01f32..10.0), author_decay in 0.1f64..1.0, impression_decay in 0.5f64..1.0,
    ) {
        let wanted = model(&posts, author_decay, impression_decay);
        prop_assert_eq!(order(&posts, author_decay, impression_decay), wanted);
    }

    #[test]
    fn every_post_is_shown_once_for_any_scores(
        posts in posts(any::<f32>()), author_decay in 0.01f64..=1.0, impression_decay in 0.01f64..=1.0,
    ) {
        let mut order = order(&posts, author_decay, impression_decay);
        order.sort();
        prop_assert_eq!(order, (0..posts.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn without_discount_the_ranking_stays(mut posts in posts((-2i8..3).prop_map(f32::from))) {
        posts.sort_by(|a, b| b.score.total_cmp(&a.score));
        prop_assert_eq!(order(&posts, 1.0, 1.0), (0..posts.len() as u32).collect::<Vec<_>>());
    }
}
