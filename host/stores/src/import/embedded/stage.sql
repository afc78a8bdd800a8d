-- Staging tables that hold a file's rows until all of them are read. They are temporary:
-- another process neither sees them nor waits for them. `line` is the row's line in its file.
-- `again_line` is the line on which the same id occurs again with other content.
CREATE TEMP TABLE IF NOT EXISTS staged_users (
    user_id INTEGER PRIMARY KEY, line INTEGER NOT NULL, again_line INTEGER,
    created_at_ms INTEGER NOT NULL, username TEXT NOT NULL, avatar_url TEXT NOT NULL,
    bio TEXT NOT NULL, country TEXT NOT NULL, language TEXT NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_posts (
    post_id INTEGER PRIMARY KEY, line INTEGER NOT NULL, again_line INTEGER,
    author_id INTEGER NOT NULL, created_at_ms INTEGER NOT NULL, view_count INTEGER NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_follows (
    follower_id INTEGER NOT NULL, following_id INTEGER NOT NULL, line INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL, PRIMARY KEY (follower_id, following_id)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS staged_comments (
    comment_id INTEGER PRIMARY KEY, line INTEGER NOT NULL, again_line INTEGER,
    post_id INTEGER NOT NULL, user_id INTEGER NOT NULL, created_at_ms INTEGER NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_likes (
    like_id INTEGER PRIMARY KEY, line INTEGER NOT NULL, again_line INTEGER,
    post_id INTEGER NOT NULL, user_id INTEGER, created_at_ms INTEGER NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS staged_events (
    event_id BLOB PRIMARY KEY, line INTEGER NOT NULL, again_line INTEGER,
    idempotency_key BLOB NOT NULL, event_time_ms INTEGER NOT NULL, user_id INTEGER NOT NULL,
    post_id INTEGER NOT NULL, author_id INTEGER NOT NULL, action TEXT NOT NULL,
    dwell_ms INTEGER, device TEXT NOT NULL, app_ver TEXT NOT NULL) WITHOUT ROWID;
DELETE FROM staged_users;
DELETE FROM staged_posts;
DELETE FROM staged_follows;
DELETE FROM staged_comments;
DELETE FROM staged_likes;
DELETE FROM staged_events;
