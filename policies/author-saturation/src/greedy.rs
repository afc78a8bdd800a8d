//! The greedy rule: each position gets the best-ranked remaining post that breaks no rule.
//!
//! Trying the posts in order at each position would be quadratic, and the answer for thousands of
//! posts is due within milliseconds. Both rules concern authors only, so it is enough to compare
//! the best remaining post of each *free* author, to whom no rule applies at this position. A set
//! of ranks holds these posts. Authors return to it when a rule no longer applies to them. One post
//! is placed per position, so the distance rule ends for at most one author there.

use crate::ranks::Ranks;
use crate::{Columns, Params, Reason};
use nova_policy_sdk::{Groups, Request};

/// Returns the index to show at each position.
pub fn saturate(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<u32> {
    place(posts.author_ids, Rules::new(params), request.seed)
        .into_iter()
        .map(|placed| placed.rank)
        .collect()
}

/// Returns the reason for the position of each post.
pub fn reasons(posts: &Columns<'_>, params: &Params, request: &Request) -> Vec<Reason> {
    let mut reasons = vec![Reason::Stayed; posts.len];
    for (position, placed) in
        (0u32..).zip(place(posts.author_ids, Rules::new(params), request.seed))
    {
        reasons[placed.rank as usize] = match placed.fit {
            Fit::TopDropped => Reason::TopRelaxed,
            Fit::Closer => Reason::DistanceRelaxed,
            Fit::Rules if position < placed.rank => Reason::MovedUp,
            Fit::Rules if position > placed.rank => Reason::Deferred,
            Fit::Rules => Reason::Stayed,
        };
    }
    reasons
}

#[derive(Clone, Copy)]
struct Rules {
    top_k: usize,
    max_in_top: u32,
    min_distance: usize,
}

impl Rules {
    fn new(params: &Params) -> Self {
        Self {
            top_k: params.top_k as usize,
            max_in_top: params.max_in_top as u32,
            min_distance: params.min_distance as usize,
        }
    }

    fn is_far_enough(&self, author: &Author, position: usize) -> bool {
        author
            .last_position
            .is_none_or(|last| position - last >= self.min_distance)
    }
}

/// Reason that a post got its position.
#[derive(Clone, Copy)]
enum Fit {
    /// The post breaks no rule.
    Rules,
    /// The distance was lowered for this position.
    Closer,
    /// Distance and top rule were both dropped.
    TopDropped,
}

#[derive(Clone, Copy)]
struct Placed {
    rank: u32,
    fit: Fit,
}

fn place(author_ids: &[u64], rules: Rules, seed: u64) -> Vec<Placed> {
    let mut line = Line::new(author_ids, rules, seed);
    (0..author_ids.len())
        .map_while(|_| line.place_next())
        .collect()
}

/// The state of one author during the ranking.
#[derive(Clone, Copy)]
struct Author {
    /// Rank of the best remaining post.
    next: Option<u32>,
    last_position: Option<usize>,
    in_top: u32,
}

/// The remaining posts, and the posts placed so far.
struct Line {
    rules: Rules,
    authors: Vec<Author>,
    /// The author of each post, by rank: an index into `authors`.
    author_of: Vec<u32>,
    /// The same author's next post, by rank.
    successor: Vec<Option<u32>>,
    /// The best remaining post of each free author.
    free: Ranks,
    /// The author at each filled position.
    placed: Vec<u32>,
    is_placed: Vec<bool>,
    /// No lower rank remains.
    first_remaining: usize,
}

impl Line {
    fn new(author_ids: &[u64], rules: Rules, seed: u64) -> Self {
        let len = author_ids.len();
        let Groups {
            of_row: author_of,
            count,
        } = Groups::of(author_ids, seed);
        let unknown = Author {
            next: None,
            last_position: None,
            in_top: 0,
        };
        let mut authors = vec![unknown; count];
        let mut successor = vec![None; len];
        // Iterates from the last rank to the first, so that each author ends with the best post.
        for (rank, &author) in author_of.iter().enumerate().rev() {
            successor[rank] = authors[author as usize].next.replace(rank as u32);
        }
        let mut free = Ranks::none(len);
        free.extend(authors.iter().filter_map(|author| author.next));
        let placed = Vec::with_capacity(len);
        let is_placed = vec![false; len];
        Self {
            rules,
            authors,
            author_of,
            successor,
            free,
            placed,
            is_placed,
            first_remaining: 0,
        }
    }

    /// Fills the next position. Returns `None` if no post remains.
    fn place_next(&mut self) -> Option<Placed> {
        self.free_authors();
        let (rank, fit) = match self.free.pop_best() {
            Some(rank) => (rank, Fit::Rules),
            None => match self.fitting_at_lower_distance() {
                Some(rank) => (rank, Fit::Closer),
                None => (self.best_remaining()?, Fit::TopDropped),
            },
        };
        self.put(rank);
        Some(Placed { rank, fit })
    }

    /// Adds the authors who become free at this position.
    fn free_authors(&mut self) {
        let position = self.placed.len();
        if position == self.rules.top_k {
            // The top rule ends for all authors at once.
            for author in self
                .authors
                .iter()
                .filter(|author| self.rules.is_far_enough(author, position))
            {
                self.free.extend(author.next);
            }
        } else if let Some(then) = position.checked_sub(self.rules.min_distance) {
            let author = self.authors[self.placed[then] as usize];
            let has_been_shown_since = author.last_position != Some(then);
            if !has_been_shown_since && !self.is_barred_from_top(&author, position) {
                self.free.extend(author.next);
            }
        }
    }

    /// Returns the first post that fits when the distance is lowered by one at a time, down to 1.
    /// Each step admits a single author, whose last post is exactly that far above.
    fn fitting_at_lower_distance(&self) -> Option<u32> {
        let position = self.placed.len();
        let distances = 1..self.rules.min_distance.min(position + 1);
        distances.rev().find_map(|distance| {
            let then = position - distance;
            let author = &self.authors[self.placed[then] as usize];
            let fits =
                author.last_position == Some(then) && !self.is_barred_from_top(author, position);
            author.next.filter(|_| fits)
        })
    }

    fn best_remaining(&mut self) -> Option<u32> {
        let remaining = self
            .is_placed
            .iter()
            .skip(self.first_remaining)
            .position(|placed| !placed)?;
        self.first_remaining += remaining;
        Some(self.first_remaining as u32)
    }

    fn put(&mut self, rank: u32) {
        let position = self.placed.len();
        let author = self.author_of[rank as usize];
        self.placed.push(author);
        self.is_placed[rank as usize] = true;
        let author = &mut self.authors[author as usize];
        author.next = self.successor[rank as usize];
        author.last_position = Some(position);
        author.in_top += u32::from(position < self.rules.top_k);
    }

    fn is_barred_from_top(&self, author: &Author, position: usize) -> bool {
        position < self.rules.top_k && author.in_top >= self.rules.max_in_top
    }
}
