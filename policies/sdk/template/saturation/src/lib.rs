//! Never shows two posts of one author in a row, as long as another author has one left.

use nova_policy_sdk::{Request, saturator};
use std::collections::VecDeque;

saturator! {
    saturate: alternate
}

/// Returns the index to show at each position. Candidates come best first.
fn alternate(posts: &Columns<'_>, _params: &Params, _request: &Request) -> Vec<u32> {
    let mut order: Vec<u32> = Vec::with_capacity(posts.len);
    // All deferred posts are by the author shown last, so one queue is enough.
    let mut deferred: VecDeque<u32> = VecDeque::new();
    let repeats = |order: &[u32], next: u32| {
        order
            .last()
            .is_some_and(|&last| posts.author_ids[last as usize] == posts.author_ids[next as usize])
    };
    for next in 0..posts.len as u32 {
        if repeats(&order, next) {
            deferred.push_back(next);
            continue;
        }
        order.push(next);
        if deferred
            .front()
            .is_some_and(|&first| !repeats(&order, first))
        {
            order.extend(deferred.pop_front());
        }
    }
    order.extend(deferred);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use nova_policy_sdk::testing::Sample;

    #[test]
    fn another_authors_post_comes_between() {
        let posts = [7, 7, 7, 8, 9].into_iter().zip(1..);
        let sample = posts.fold(Sample::new(describe()), |s, (author, id)| {
            s.post(id, author, 0, &[])
        });
        assert_eq!(sample.saturate(saturate), [0, 3, 1, 4, 2]);
    }
}
