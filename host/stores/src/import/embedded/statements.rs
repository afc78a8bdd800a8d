//! The SQLite statements that stage each file, load it, and count it in the aggregates.

use crate::ports::FileKind;

#[derive(Debug)]
pub(super) struct Statements {
    /// Stages ?1, a JSON array of rows.
    pub stage: &'static str,
    pub insert: &'static str,
    /// Statements that add the new rows to the aggregates.
    pub effects: &'static [&'static str],
}

impl Statements {
    pub fn from_kind(kind: FileKind) -> &'static Self {
        match kind {
            FileKind::Users => &USERS,
            FileKind::Posts => &POSTS,
            FileKind::Follows => &FOLLOWS,
            FileKind::Comments => &COMMENTS,
            FileKind::Likes => &LIKES,
            FileKind::Events => &EVENTS,
        }
    }
}

const USERS: Statements = Statements {
    stage: "
INSERT INTO staged_users (user_id, line, created_at_ms, username, avatar_url, bio, country, language)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
FROM json_each(?1) WHERE true
ON CONFLICT (user_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (created_at_ms, username, avatar_url, bio, country, language)
      IS NOT (excluded.created_at_ms, excluded.username, excluded.avatar_url, excluded.bio,
              excluded.country, excluded.language)",
    insert: "
INSERT INTO users (user_id, created_at_ms, username, avatar_url, bio, country, language)
SELECT user_id, created_at_ms, username, avatar_url, bio, country, language FROM staged_users",
    effects: &[],
};

const POSTS: Statements = Statements {
    stage: "
INSERT INTO staged_posts (post_id, line, author_id, created_at_ms, view_count)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (post_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (author_id, created_at_ms, view_count)
      IS NOT (excluded.author_id, excluded.created_at_ms, excluded.view_count)",
    insert: "
INSERT INTO posts (post_id, author_id, created_at_ms)
SELECT post_id, author_id, created_at_ms FROM staged_posts",
    effects: &["
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, view_count, 0, 0, 0, 0, view_count
FROM staged_posts
WHERE view_count > 0
ON CONFLICT (post_id, hour_ms) DO UPDATE SET
    views = views + excluded.views, exposures = exposures + excluded.exposures"],
};

const FOLLOWS: Statements = Statements {
    // An edge that occurs twice is one edge, even if the times differ. The first one stays.
    stage: "
INSERT INTO staged_follows (follower_id, following_id, line, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3
FROM json_each(?1) WHERE true
ON CONFLICT DO NOTHING",
    insert: "
INSERT INTO follows (follower_id, following_id, created_at_ms)
SELECT follower_id, following_id, created_at_ms FROM staged_follows",
    effects: &[],
};

const COMMENTS: Statements = Statements {
    stage: "
INSERT INTO staged_comments (comment_id, line, post_id, user_id, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (comment_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (post_id, user_id, created_at_ms)
      IS NOT (excluded.post_id, excluded.user_id, excluded.created_at_ms)",
    insert: "
INSERT INTO comments (comment_id, post_id, user_id, created_at_ms)
SELECT comment_id, post_id, user_id, created_at_ms FROM staged_comments",
    effects: &[
        "
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, 0, 0, count(*), 0, 0, 0
FROM staged_comments
WHERE true
GROUP BY 1, 2
ON CONFLICT (post_id, hour_ms) DO UPDATE SET comments = comments + excluded.comments",
        "
INSERT INTO user_author_90d (user_id, author_id, day_ms, likes, comments, views)
SELECT s.user_id, p.author_id, s.created_at_ms - s.created_at_ms % 86400000, 0, count(*), 0
FROM staged_comments s CROSS JOIN posts p ON p.post_id = s.post_id
WHERE true
GROUP BY 1, 2, 3
ON CONFLICT (user_id, author_id, day_ms) DO UPDATE SET comments = comments + excluded.comments",
    ],
};

const LIKES: Statements = Statements {
    stage: "
INSERT INTO staged_likes (like_id, line, post_id, user_id, created_at_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(?1) WHERE true
ON CONFLICT (like_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (post_id, user_id, created_at_ms)
      IS NOT (excluded.post_id, excluded.user_id, excluded.created_at_ms)",
    insert: "
INSERT INTO likes (like_id, post_id, user_id, created_at_ms)
SELECT like_id, post_id, user_id, created_at_ms FROM staged_likes",
    effects: &[
        "
INSERT INTO post_metrics_1h (post_id, hour_ms, views, likes, comments, shares, dwell_ms_sum, exposures)
SELECT post_id, created_at_ms - created_at_ms % 3600000, 0, count(*), 0, 0, 0, 0
FROM staged_likes
WHERE true
GROUP BY 1, 2
ON CONFLICT (post_id, hour_ms) DO UPDATE SET likes = likes + excluded.likes",
        // An anonymous like counts for its post and for no viewer's affinity.
        "
INSERT INTO user_author_90d (user_id, author_id, day_ms, likes, comments, views)
SELECT s.user_id, p.author_id, s.created_at_ms - s.created_at_ms % 86400000, count(*), 0, 0
FROM staged_likes s CROSS JOIN posts p ON p.post_id = s.post_id
WHERE s.user_id IS NOT NULL
GROUP BY 1, 2, 3
ON CONFLICT (user_id, author_id, day_ms) DO UPDATE SET likes = likes + excluded.likes",
    ],
};

const EVENTS: Statements = Statements {
    stage: "
INSERT INTO staged_events (event_id, idempotency_key, line, event_time_ms, user_id, post_id,
                           author_id, action, dwell_ms, device, app_ver)
SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
       value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10
FROM json_each(?1) WHERE true
ON CONFLICT (event_id) DO UPDATE SET again_line = excluded.line
WHERE again_line IS NULL
  AND (event_time_ms, user_id, post_id, author_id, action, dwell_ms, device, app_ver)
      IS NOT (excluded.event_time_ms, excluded.user_id, excluded.post_id, excluded.author_id,
              excluded.action, excluded.dwell_ms, excluded.device, excluded.app_ver)",
    insert: "
INSERT INTO imported_events (event_id, user_id, post_id)
SELECT event_id, user_id, post_id FROM staged_events",
    // An imported event counts as accepted when it happened. If the user's client sent an event
    // with the same id, that event is already there. The aggregates follow from the rows that
    // are really inserted.
    effects: &["
INSERT INTO events (idempotency_key, event_id, event_time_ms, accepted_ms, user_id, post_id,
                    author_id, action, dwell_ms, device, app_ver)
SELECT idempotency_key, event_id, event_time_ms, event_time_ms, user_id, post_id, author_id,
       action, dwell_ms, device, app_ver
FROM staged_events
WHERE true
ON CONFLICT DO NOTHING"],
};
