//! The PostgreSQL statements that stage each file, remove its repetitions, and load it.

use crate::ports::FileKind;

#[derive(Debug)]
pub(super) struct Statements {
    /// Stages $1, a JSON array of rows.
    pub stage: &'static str,
    /// Statements that keep the first of several rows with one id, and set its `again_line` if
    /// a later one has other content.
    pub settle: &'static [&'static str],
    pub insert: &'static str,
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

/// Ends with ANALYZE, because temporary tables are not analysed automatically and the checks
/// join them.
macro_rules! settle_by {
    ($table:literal, $key:literal) => {
        &[
            concat!(
                "UPDATE ",
                $table,
                " s SET again_line = r.again_line FROM (",
                "SELECT first_line, min(line) AS again_line FROM (",
                "SELECT line, content, first_value(line) OVER w AS first_line, ",
                "first_value(content) OVER w AS first_content ",
                "FROM ",
                $table,
                " WINDOW w AS (PARTITION BY ",
                $key,
                " ORDER BY line)) rows ",
                "WHERE content <> first_content GROUP BY first_line) r ",
                "WHERE s.line = r.first_line"
            ),
            leave_first!($table, $key),
            concat!("ANALYZE ", $table),
        ]
    };
}

macro_rules! leave_first {
    ($table:literal, $key:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " s USING (",
            "SELECT line, row_number() OVER (PARTITION BY ",
            $key,
            " ORDER BY line) AS nth ",
            "FROM ",
            $table,
            ") r WHERE r.line = s.line AND r.nth > 1"
        )
    };
}

const USERS: Statements = Statements {
    stage: "
INSERT INTO staged_users (user_id, line, created_at_ms, username, avatar_url, bio, country, language, content)
SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, value ->> 3, value ->> 4,
       value ->> 5, value ->> 6, value ->> 7, md5((value - 1)::text)::uuid
FROM jsonb_array_elements($1::jsonb)",
    settle: settle_by!("staged_users", "user_id"),
    insert: "
INSERT INTO users (user_id, created_at, username, avatar_url, bio, country, language)
SELECT user_id, timestamptz 'epoch' + created_at_ms * interval '1 ms', username, avatar_url, bio,
       country, language
FROM staged_users
ON CONFLICT DO NOTHING",
};

const POSTS: Statements = Statements {
    stage: "
INSERT INTO staged_posts (post_id, line, author_id, created_at_ms, view_count, content)
SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::bigint,
       (value ->> 4)::bigint, md5((value - 1)::text)::uuid
FROM jsonb_array_elements($1::jsonb)",
    settle: settle_by!("staged_posts", "post_id"),
    insert: "
INSERT INTO posts (post_id, author_id, created_at)
SELECT post_id, author_id, timestamptz 'epoch' + created_at_ms * interval '1 ms' FROM staged_posts
ON CONFLICT DO NOTHING",
};

const FOLLOWS: Statements = Statements {
    stage: "
INSERT INTO staged_follows (follower_id, following_id, line, created_at_ms)
SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::bigint
FROM jsonb_array_elements($1::jsonb)",
    // An edge that occurs twice is one edge, even if the times differ. The first one stays.
    settle: &[
        leave_first!("staged_follows", "follower_id, following_id"),
        "ANALYZE staged_follows",
    ],
    insert: "
INSERT INTO follows (follower_id, following_id, created_at)
SELECT follower_id, following_id, timestamptz 'epoch' + created_at_ms * interval '1 ms'
FROM staged_follows
ON CONFLICT DO NOTHING",
};

const COMMENTS: Statements = Statements {
    stage: "
INSERT INTO staged_comments (comment_id, line, post_id, user_id, created_at_ms, content)
SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::bigint,
       (value ->> 4)::bigint, md5((value - 1)::text)::uuid
FROM jsonb_array_elements($1::jsonb)",
    settle: settle_by!("staged_comments", "comment_id"),
    insert: "
INSERT INTO comments (comment_id, post_id, user_id, created_at)
SELECT comment_id, post_id, user_id, timestamptz 'epoch' + created_at_ms * interval '1 ms'
FROM staged_comments
ON CONFLICT DO NOTHING",
};

const LIKES: Statements = Statements {
    stage: "
INSERT INTO staged_likes (like_id, line, post_id, user_id, created_at_ms, content)
SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::bigint,
       (value ->> 4)::bigint, md5((value - 1)::text)::uuid
FROM jsonb_array_elements($1::jsonb)",
    settle: settle_by!("staged_likes", "like_id"),
    insert: "
INSERT INTO likes (like_id, post_id, user_id, created_at)
SELECT like_id, post_id, user_id, timestamptz 'epoch' + created_at_ms * interval '1 ms'
FROM staged_likes
ON CONFLICT DO NOTHING",
};

const EVENTS: Statements = Statements {
    // Position 1 is not staged here. It is the identity by which the embedded store
    // distinguishes an imported event from a sent one.
    stage: "
INSERT INTO staged_events (event_id, line, event_time_ms, user_id, post_id, author_id, action,
                           dwell_ms, device, app_ver, content)
SELECT (value ->> 0)::uuid, (value ->> 2)::bigint, (value ->> 3)::bigint, (value ->> 4)::bigint,
       (value ->> 5)::bigint, (value ->> 6)::bigint, value ->> 7, (value ->> 8)::bigint, value ->> 9,
       value ->> 10, md5((value - 2)::text)::uuid
FROM jsonb_array_elements($1::jsonb)",
    settle: settle_by!("staged_events", "event_id"),
    insert: "
INSERT INTO events_dedup (event_id, user_id, post_id)
SELECT event_id, user_id, post_id FROM staged_events
ON CONFLICT DO NOTHING",
};
