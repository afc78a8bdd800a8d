-- Version 1 of the schema of the embedded store. Times are milliseconds since the Unix epoch in
-- UTC unless a name says otherwise. Uuids and hashes are 16 raw bytes.
--
-- There are no foreign keys. Events arrive for posts that may be deleted by then. The import
-- checks references itself, because it has to name the line.

CREATE TABLE IF NOT EXISTS users (
    user_id       INTEGER PRIMARY KEY,
    created_at_ms INTEGER NOT NULL,
    username      TEXT NOT NULL DEFAULT '',
    avatar_url    TEXT NOT NULL DEFAULT '',
    bio           TEXT NOT NULL DEFAULT '',
    country       TEXT NOT NULL DEFAULT '',
    language      TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE IF NOT EXISTS posts (
    post_id       INTEGER PRIMARY KEY,
    author_id     INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    deleted       INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1))
) STRICT;
-- Both indexes have the order in which the sources read them, and leave out the deleted posts.
CREATE INDEX IF NOT EXISTS posts_by_author
    ON posts (author_id, created_at_ms DESC, post_id DESC) WHERE deleted = 0;
CREATE INDEX IF NOT EXISTS posts_by_time
    ON posts (created_at_ms DESC, post_id DESC, author_id) WHERE deleted = 0;

CREATE TABLE IF NOT EXISTS follows (
    follower_id   INTEGER NOT NULL,
    following_id  INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (follower_id, following_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS follows_by_following ON follows (following_id, follower_id);

-- Relational rows for validation and deletion. Counters come from events, never from these
-- rows.
CREATE TABLE IF NOT EXISTS comments (
    comment_id    INTEGER PRIMARY KEY,
    post_id       INTEGER NOT NULL,
    user_id       INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS likes (
    like_id       INTEGER PRIMARY KEY,
    post_id       INTEGER NOT NULL,
    user_id       INTEGER,              -- NULL: anonymous
    created_at_ms INTEGER NOT NULL
) STRICT;

-- Raw events. The sink and the import find the rows that they just inserted by rowid, so rows
-- are only appended or expired.
CREATE TABLE IF NOT EXISTS events (
    event_row       INTEGER PRIMARY KEY,
    idempotency_key BLOB NOT NULL,
    event_id        BLOB NOT NULL,
    event_time_ms   INTEGER NOT NULL,
    accepted_ms     INTEGER NOT NULL,
    user_id         INTEGER NOT NULL,
    post_id         INTEGER NOT NULL,
    author_id       INTEGER NOT NULL,   -- as sent
    action          TEXT NOT NULL,
    dwell_ms        INTEGER,
    device          TEXT NOT NULL,
    app_ver         TEXT NOT NULL,
    ranking_id      BLOB
) STRICT;
-- The second is part of the identity, so putting it first does not change which events are
-- equal. Events of one batch then fall into a few pages instead of one random page each, and
-- the index serves queries by time as well.
CREATE UNIQUE INDEX IF NOT EXISTS events_by_idempotency_key
    ON events (event_time_ms / 1000, idempotency_key);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_event_id ON events (user_id, event_id);
CREATE INDEX IF NOT EXISTS events_shown
    ON events (user_id, accepted_ms, action, post_id, author_id)
    WHERE action IN ('impression', 'view');

-- Buckets that counters and affinities are summed from. `hour_ms` and `day_ms` are the start of
-- the bucket.
CREATE TABLE IF NOT EXISTS post_metrics_1h (
    post_id      INTEGER NOT NULL,
    hour_ms      INTEGER NOT NULL,
    views        INTEGER NOT NULL,
    likes        INTEGER NOT NULL,
    comments     INTEGER NOT NULL,
    shares       INTEGER NOT NULL,
    dwell_ms_sum INTEGER NOT NULL,
    exposures    INTEGER NOT NULL,
    PRIMARY KEY (post_id, hour_ms)
) STRICT, WITHOUT ROWID;
-- Trending reads only the whole hours of posts with engagement.
CREATE INDEX IF NOT EXISTS post_metrics_engaged
    ON post_metrics_1h (hour_ms, post_id, likes, comments, shares)
    WHERE likes + comments + shares > 0;

CREATE TABLE IF NOT EXISTS user_author_90d (
    user_id   INTEGER NOT NULL,
    author_id INTEGER NOT NULL,
    day_ms    INTEGER NOT NULL,
    likes     INTEGER NOT NULL,
    comments  INTEGER NOT NULL,
    views     INTEGER NOT NULL,
    PRIMARY KEY (user_id, author_id, day_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS sink_state (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    written_through INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS exposures (
    ranking_id       BLOB PRIMARY KEY,
    request_id       TEXT NOT NULL,
    user_id          INTEGER NOT NULL,
    served_at_ms     INTEGER NOT NULL,
    served_by        TEXT NOT NULL,
    policy           TEXT NOT NULL,
    effective_digest TEXT NOT NULL,
    experiment       TEXT,
    variation        TEXT,
    posts            TEXT NOT NULL,     -- JSON [[post_id, reason], …] in the order shown
    degraded         TEXT NOT NULL      -- JSON ["part", …]
) STRICT;
CREATE INDEX IF NOT EXISTS exposures_by_time ON exposures (served_at_ms);
CREATE INDEX IF NOT EXISTS exposures_by_user ON exposures (user_id, served_at_ms);
CREATE INDEX IF NOT EXISTS exposures_by_variation
    ON exposures (experiment, variation, user_id) WHERE experiment IS NOT NULL;

-- Ids of imported events. They are kept for ever, even after the raw rows have expired, so that
-- importing the same directory again much later adds nothing.
CREATE TABLE IF NOT EXISTS imported_events (
    event_id BLOB PRIMARY KEY,
    user_id  INTEGER NOT NULL,
    post_id  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Offsets of `--shift-to-now`, by the newest time of the files as they are on disk.
CREATE TABLE IF NOT EXISTS import_offsets (
    newest_ms INTEGER PRIMARY KEY,
    offset_ms INTEGER NOT NULL
) STRICT;
