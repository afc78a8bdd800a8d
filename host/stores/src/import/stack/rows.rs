//! The rows that an import writes to ClickHouse, and the queries that read them from
//! PostgreSQL: the rows that are staged and new.

use crate::clickhouse::{CommentRow, FollowRow, ImportedEvent, LikeRow, PostRow, UserRow};
use crate::guard::Failure;
use crate::postgres::from_sql;
use nova_model::event::{AcceptedEvent, Action};
use uuid::Uuid;

/// Version of imported rows. Every row captured later outranks it.
const VERSION: u64 = 0;

pub(super) const USERS: &str =
    "SELECT user_id, created_at_ms, username, avatar_url, bio, country, language FROM staged_users";
pub(super) const POSTS: &str = "SELECT post_id, author_id, created_at_ms FROM staged_posts";
pub(super) const FOLLOWS: &str =
    "SELECT follower_id, following_id, created_at_ms FROM staged_follows";
pub(super) const COMMENTS: &str =
    "SELECT comment_id, post_id, user_id, created_at_ms FROM staged_comments";
pub(super) const LIKES: &str =
    "SELECT like_id, post_id, coalesce(user_id, 0), created_at_ms FROM staged_likes";

// Events are read in the order of time, so that a batch touches few days. Each day is a part of
// its own.

pub(super) const VIEW_COUNTS: &str = "
SELECT a.import_id || post_id, md5(a.import_id || post_id)::uuid, created_at_ms, 0::bigint, post_id,
       author_id, a.action, NULL::bigint, '', '', view_count
FROM staged_posts CROSS JOIN (VALUES ('view', 'views:'), ('impression', 'impressions:')) a (action, import_id)
WHERE view_count > 0
ORDER BY created_at_ms, post_id, a.action";
pub(super) const COMMENT_EVENTS: &str = "
SELECT 'comment:' || s.comment_id, md5('comment:' || s.comment_id)::uuid, s.created_at_ms, s.user_id,
       s.post_id, p.author_id, 'comment', NULL::bigint, '', '', 1::bigint
FROM staged_comments s JOIN posts p ON p.post_id = s.post_id
ORDER BY s.created_at_ms, s.comment_id";
pub(super) const LIKE_EVENTS: &str = "
SELECT 'like:' || s.like_id, md5('like:' || s.like_id)::uuid, s.created_at_ms, coalesce(s.user_id, 0),
       s.post_id, p.author_id, 'like', NULL::bigint, '', '', 1::bigint
FROM staged_likes s JOIN posts p ON p.post_id = s.post_id
ORDER BY s.created_at_ms, s.like_id";
pub(super) const EVENTS: &str = "
SELECT 'event:' || event_id, event_id, event_time_ms, user_id, post_id, author_id, action, dwell_ms,
       device, app_ver, 1::bigint
FROM staged_events
ORDER BY event_time_ms, event_id";

pub(super) type User = (i64, i64, String, String, String, String, String);

pub(super) fn user(staged: User) -> UserRow {
    let (user_id, created_at, username, avatar_url, bio, country, language) = staged;
    UserRow {
        user_id: from_sql(user_id),
        username,
        avatar_url,
        bio,
        country,
        language,
        created_at,
        version: VERSION,
        is_deleted: 0,
    }
}

pub(super) fn post((post_id, author_id, created_at): (i64, i64, i64)) -> PostRow {
    PostRow {
        post_id: from_sql(post_id),
        author_id: from_sql(author_id),
        created_at,
        version: VERSION,
        is_deleted: 0,
    }
}

pub(super) fn follow((follower_id, following_id, created_at): (i64, i64, i64)) -> FollowRow {
    FollowRow {
        follower_id: from_sql(follower_id),
        following_id: from_sql(following_id),
        created_at,
        version: VERSION,
        is_deleted: 0,
    }
}

pub(super) fn comment(staged: (i64, i64, i64, i64)) -> CommentRow {
    let (comment_id, post_id, user_id, created_at) = staged;
    CommentRow {
        comment_id: from_sql(comment_id),
        post_id: from_sql(post_id),
        user_id: from_sql(user_id),
        created_at,
        version: VERSION,
        is_deleted: 0,
    }
}

pub(super) fn like((like_id, post_id, user_id, created_at): (i64, i64, i64, i64)) -> LikeRow {
    LikeRow {
        like_id: from_sql(like_id),
        post_id: from_sql(post_id),
        user_id: from_sql(user_id),
        created_at,
        version: VERSION,
        is_deleted: 0,
    }
}

pub(super) type Event = (
    String,
    Uuid,
    i64,
    i64,
    i64,
    i64,
    String,
    Option<i64>,
    String,
    String,
    i64,
);

/// Converts a staged event, which counts as accepted when it happened.
pub(super) fn event(staged: Event) -> Result<ImportedEvent, Failure> {
    let (
        import_id,
        event_id,
        at_ms,
        user_id,
        post_id,
        author_id,
        action,
        dwell_ms,
        device,
        app_ver,
        times,
    ) = staged;
    let action = Action::parse(&action).ok_or_else(|| {
        Failure::permanent(anyhow::anyhow!(
            "a staged event has the unknown action {action:?}"
        ))
    })?;
    let event = AcceptedEvent {
        event_id,
        event_time_ms: from_sql(at_ms),
        accepted_ms: from_sql(at_ms),
        user_id: from_sql(user_id),
        post_id: from_sql(post_id),
        author_id: from_sql(author_id),
        action,
        dwell_ms: dwell_ms.and_then(|dwell_ms| u32::try_from(dwell_ms).ok()),
        device,
        app_ver,
        ranking_id: None,
    };
    Ok(ImportedEvent {
        import_id,
        event,
        times: from_sql(times),
    })
}
