-- The community's tables, copied from PostgreSQL by change data capture: users, posts, follows,
-- comments and likes. The candidate sources join them with the events.
--
-- These files are applied in the order of their numbers, each once (recorded in
-- `schema_version`), statement by statement. A statement ends with `;` at the end of a line.
-- Statements name no database, so they apply to the database in CLICKHOUSE_URL. Repeating a
-- statement does no harm, because two hosts may migrate at once.
--
-- Every table is a ReplacingMergeTree(version, is_deleted). `version` is twice the position of
-- the change in PostgreSQL's log, plus one for a live row, and 0 for imported rows. A change
-- that is delivered again, or late, replaces nothing newer. A processing time would not work as
-- the version: a delete that is delivered twice would outrank a later re-insert for ever. Until
-- parts are merged, old rows exist next to new ones, so every read uses FINAL. FINAL merges
-- within partitions only (`do_not_merge_across_partitions_select_final` in the adapter). This
-- is correct because the columns that decide the partition are part of the sort key.

CREATE TABLE IF NOT EXISTS users (
    user_id    UInt64,
    created_at DateTime64(3, 'UTC'),
    username   String,
    avatar_url String,
    bio        String,
    country    LowCardinality(String),
    language   LowCardinality(String),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY user_id
SETTINGS index_granularity = 1024;

-- Sorted for queries for an author's posts since a given time: an author's newest posts are
-- adjacent. The author and the creation time never change, so this key identifies a post.
CREATE TABLE IF NOT EXISTS posts (
    post_id    UInt64,
    author_id  UInt64,
    created_at DateTime64(3, 'UTC'),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(created_at)
ORDER BY (author_id, created_at, post_id)
SETTINGS index_granularity = 1024;

-- Look-ups by id: the author of each of these posts, and whether it is deleted. A query has a
-- few hundred ids of millions, so the granules are small. With the default of 8,192 rows each id
-- would read eight times as much.
CREATE TABLE IF NOT EXISTS posts_by_id (
    post_id    UInt64,
    author_id  UInt64,
    created_at DateTime64(3, 'UTC'),
    version    UInt64,
    is_deleted UInt8
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY post_id
SETTINGS index_granularity = 256;

CREATE MATERIALIZED VIEW IF NOT EXISTS posts_to_posts_by_id TO posts_by_id AS
SELECT post_id, author_id, created_at, version, is_deleted FROM posts;

-- The newest posts of all authors.
CREATE TABLE IF NOT EXISTS posts_by_time (
    post_id    UInt64,
    author_id  UInt64,
    created_at DateTime64(3, 'UTC'),
    version    UInt64,
    is_deleted UInt8
) ENGINE = ReplacingMergeTree(version, is_deleted)
PARTITION BY toYYYYMM(created_at)
ORDER BY (created_at, post_id)
TTL toDateTime(created_at) + INTERVAL 92 DAY
SETTINGS index_granularity = 1024;

CREATE MATERIALIZED VIEW IF NOT EXISTS posts_to_posts_by_time TO posts_by_time AS
SELECT post_id, author_id, created_at, version, is_deleted FROM posts;

CREATE TABLE IF NOT EXISTS follows (
    follower_id  UInt64,
    following_id UInt64,
    created_at   DateTime64(3, 'UTC'),
    version      UInt64,
    is_deleted   UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY (follower_id, following_id)
SETTINGS index_granularity = 1024;

-- The followers of given users, and their number.
CREATE TABLE IF NOT EXISTS follows_by_following (
    following_id UInt64,
    follower_id  UInt64,
    version      UInt64,
    is_deleted   UInt8
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY (following_id, follower_id)
SETTINGS index_granularity = 1024;

CREATE MATERIALIZED VIEW IF NOT EXISTS follows_to_follows_by_following TO follows_by_following AS
SELECT following_id, follower_id, version, is_deleted FROM follows;

-- Comments and likes are stored only for the comparison with PostgreSQL (`nova cdc validate`).
-- Counters come from events alone, never from these tables.
CREATE TABLE IF NOT EXISTS comments (
    comment_id UInt64,
    post_id    UInt64,
    user_id    UInt64,
    created_at DateTime64(3, 'UTC'),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY comment_id;

CREATE TABLE IF NOT EXISTS likes (
    like_id    UInt64,
    post_id    UInt64,
    user_id    UInt64 COMMENT '0: anonymous',
    created_at DateTime64(3, 'UTC'),
    version    UInt64,
    is_deleted UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(version, is_deleted)
ORDER BY like_id;
