-- Staging tables that hold a file's rows until all of them are read. They are temporary, so
-- that other sessions do not see them, and have no key except the line, because an id may occur
-- twice. Repeated ids are then recorded as in the embedded store: `line` is the row's line in
-- its file, and `again_line` is the line on which the same id occurs again with other content.
CREATE TEMP TABLE IF NOT EXISTS staged_users (
    user_id bigint NOT NULL, line bigint PRIMARY KEY, again_line bigint, content uuid NOT NULL,
    created_at_ms bigint NOT NULL, username text NOT NULL, avatar_url text NOT NULL,
    bio text NOT NULL, country text NOT NULL, language text NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_posts (
    post_id bigint NOT NULL, line bigint PRIMARY KEY, again_line bigint, content uuid NOT NULL,
    author_id bigint NOT NULL, created_at_ms bigint NOT NULL, view_count bigint NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_follows (
    follower_id bigint NOT NULL, following_id bigint NOT NULL, line bigint PRIMARY KEY,
    created_at_ms bigint NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_comments (
    comment_id bigint NOT NULL, line bigint PRIMARY KEY, again_line bigint, content uuid NOT NULL,
    post_id bigint NOT NULL, user_id bigint NOT NULL, created_at_ms bigint NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_likes (
    like_id bigint NOT NULL, line bigint PRIMARY KEY, again_line bigint, content uuid NOT NULL,
    post_id bigint NOT NULL, user_id bigint, created_at_ms bigint NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_events (
    event_id uuid NOT NULL, line bigint PRIMARY KEY, again_line bigint, content uuid NOT NULL,
    event_time_ms bigint NOT NULL, user_id bigint NOT NULL, post_id bigint NOT NULL,
    author_id bigint NOT NULL, action text NOT NULL, dwell_ms bigint, device text NOT NULL,
    app_ver text NOT NULL);
TRUNCATE staged_users, staged_posts, staged_follows, staged_comments, staged_likes, staged_events;
-- The view has the name of the table in the embedded store, so that the checks are the same in
-- both.
CREATE OR REPLACE TEMP VIEW imported_events AS SELECT event_id, user_id, post_id FROM events_dedup;
