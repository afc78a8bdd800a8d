//! Conversion of a PostgreSQL row change into ClickHouse rows: one row to write, or two if the
//! sort key changed.
//!
//! The version of a row is twice the position of its change in PostgreSQL's log, plus one if
//! the row is live. Positions are monotone for each row, because a row's lock makes its changes
//! wait for each other. The low bit decides if one change ends a row and begins another at the
//! same position: `posts_by_id` has both rows under one key, and the live one must win.

use super::rows::{Comment, Follow, Like, Post, Transition, User};
use chrono::{DateTime, Utc};
use nova_model::cdc::Table;
use nova_stores::clickhouse::{CommentRow, FollowRow, LikeRow, PostRow, UserRow};

#[derive(Debug, Clone, PartialEq)]
pub enum RowChange {
    User(Transition<User>),
    Post(Transition<Post>),
    Follow(Transition<Follow>),
    Comment(Transition<Comment>),
    Like(Transition<Like>),
}

/// Rows to write, by table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub users: Vec<UserRow>,
    pub posts: Vec<PostRow>,
    pub follows: Vec<FollowRow>,
    pub comments: Vec<CommentRow>,
    pub likes: Vec<LikeRow>,
}

impl RowChange {
    pub fn table(&self) -> Table {
        match self {
            RowChange::User(_) => Table::Users,
            RowChange::Post(_) => Table::Posts,
            RowChange::Follow(_) => Table::Follows,
            RowChange::Comment(_) => Table::Comments,
            RowChange::Like(_) => Table::Likes,
        }
    }

    pub fn committed_ms(&self) -> u64 {
        match self {
            RowChange::User(change) => change.committed_ms,
            RowChange::Post(change) => change.committed_ms,
            RowChange::Follow(change) => change.committed_ms,
            RowChange::Comment(change) => change.committed_ms,
            RowChange::Like(change) => change.committed_ms,
        }
    }
}

impl Rows {
    pub fn from_changes<'a>(changes: impl Iterator<Item = &'a RowChange>) -> Self {
        let mut rows = Self::default();
        for change in changes {
            match change {
                RowChange::User(change) => rows.users.extend(change.rows(|_| true, user)),
                RowChange::Post(change) => {
                    rows.posts.extend(change.rows(|post| !post.deleted, post))
                }
                RowChange::Follow(change) => rows.follows.extend(change.rows(|_| true, follow)),
                RowChange::Comment(change) => rows.comments.extend(change.rows(|_| true, comment)),
                RowChange::Like(change) => rows.likes.extend(change.rows(|_| true, like)),
            }
        }
        rows
    }
}

/// The version of a written row in its table, and its deletion flag.
#[derive(Clone, Copy)]
struct Mark {
    version: u64,
    is_deleted: u8,
}

impl Mark {
    fn living(lsn: u64) -> Self {
        Self {
            version: lsn * 2 + 1,
            is_deleted: 0,
        }
    }

    fn gone(lsn: u64) -> Self {
        Self {
            version: lsn * 2,
            is_deleted: 1,
        }
    }
}

impl<R> Transition<R> {
    fn rows<W: SortKey>(&self, lives: impl Fn(&R) -> bool, row: impl Fn(&R, Mark) -> W) -> Vec<W> {
        let new = self.after.as_ref().map(|after| {
            let mark = if lives(after) {
                Mark::living(self.lsn)
            } else {
                Mark::gone(self.lsn)
            };
            row(after, mark)
        });
        let old = self
            .before
            .as_ref()
            .map(|before| row(before, Mark::gone(self.lsn)))
            .filter(|old| new.as_ref().is_none_or(|new| new.key() != old.key()));
        old.into_iter().chain(new).collect()
    }
}

/// Identity of a row in ClickHouse: the columns of its sort key and of its partition.
trait SortKey {
    fn key(&self) -> (u64, u64, i64);
}

impl SortKey for UserRow {
    fn key(&self) -> (u64, u64, i64) {
        (self.user_id, 0, 0)
    }
}

impl SortKey for PostRow {
    fn key(&self) -> (u64, u64, i64) {
        (self.post_id, self.author_id, self.created_at)
    }
}

impl SortKey for FollowRow {
    fn key(&self) -> (u64, u64, i64) {
        (self.follower_id, self.following_id, 0)
    }
}

impl SortKey for CommentRow {
    fn key(&self) -> (u64, u64, i64) {
        (self.comment_id, 0, 0)
    }
}

impl SortKey for LikeRow {
    fn key(&self) -> (u64, u64, i64) {
        (self.like_id, 0, 0)
    }
}

fn ms(at: &DateTime<Utc>) -> i64 {
    at.timestamp_millis()
}

fn user(from: &User, mark: Mark) -> UserRow {
    UserRow {
        user_id: from.user_id,
        username: from.username.clone(),
        avatar_url: from.avatar_url.clone(),
        bio: from.bio.clone(),
        country: from.country.clone(),
        language: from.language.clone(),
        created_at: ms(&from.created_at),
        version: mark.version,
        is_deleted: mark.is_deleted,
    }
}

fn post(from: &Post, mark: Mark) -> PostRow {
    PostRow {
        post_id: from.post_id,
        author_id: from.author_id,
        created_at: ms(&from.created_at),
        version: mark.version,
        is_deleted: mark.is_deleted,
    }
}

fn follow(from: &Follow, mark: Mark) -> FollowRow {
    FollowRow {
        follower_id: from.follower_id,
        following_id: from.following_id,
        created_at: ms(&from.created_at),
        version: mark.version,
        is_deleted: mark.is_deleted,
    }
}

fn comment(from: &Comment, mark: Mark) -> CommentRow {
    CommentRow {
        comment_id: from.comment_id,
        post_id: from.post_id,
        user_id: from.user_id,
        created_at: ms(&from.created_at),
        version: mark.version,
        is_deleted: mark.is_deleted,
    }
}

fn like(from: &Like, mark: Mark) -> LikeRow {
    LikeRow {
        like_id: from.like_id,
        post_id: from.post_id,
        user_id: from.user_id.unwrap_or(0),
        created_at: ms(&from.created_at),
        version: mark.version,
        is_deleted: mark.is_deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_post(author_id: u64, deleted: bool) -> Post {
        Post {
            post_id: 10,
            author_id,
            created_at: DateTime::UNIX_EPOCH,
            deleted,
        }
    }

    fn written(before: Option<Post>, after: Option<Post>) -> Vec<(u64, u64, u8)> {
        let change = RowChange::Post(Transition {
            before,
            after,
            lsn: 100,
            committed_ms: 0,
            snapshot: false,
        });
        let rows = Rows::from_changes(std::iter::once(&change)).posts;
        rows.iter()
            .map(|row| (row.author_id, row.version, row.is_deleted))
            .collect()
    }

    #[test]
    fn an_insert_is_live_and_a_delete_or_a_deletion_mark_is_deleted() {
        let alive = || Some(some_post(1, false));
        assert_eq!(written(None, alive()), [(1, 201, 0)]);
        assert_eq!(written(alive(), None), [(1, 200, 1)]);
        assert_eq!(written(alive(), Some(some_post(1, true))), [(1, 200, 1)]);
        assert_eq!(written(Some(some_post(1, true)), alive()), [(1, 201, 0)]);
    }

    #[test]
    fn a_changed_sort_key_deletes_the_old_row_with_a_lower_version_than_the_new_one() {
        assert_eq!(
            written(Some(some_post(1, false)), Some(some_post(2, false))),
            [(1, 200, 1), (2, 201, 0)]
        );
    }

    #[test]
    fn a_later_change_has_a_higher_version_than_any_earlier_one() {
        assert!(Mark::gone(101).version > Mark::living(100).version);
    }
}
