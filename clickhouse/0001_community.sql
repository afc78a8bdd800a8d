-- The community as PostgreSQL has it, brought here by change data capture, because the candidate
-- sources join it with what happened: users, posts, follows, comments and likes.
--
-- How these files are read: in the order of their numbers, each once (`schema_version` remembers),
-- statement by statement, a statement ending with `;` at the end of a line. A statement names no
-- database, so that the one in CLICKHOUSE_URL is the one that is meant, and repeating it does no
-- harm: two hosts may migrate at once.
--
-- Every table is a ReplacingMergeTree(version, is_deleted). `version` is the position of the change
-- in PostgreSQL's log, 0 for imported rows: a change that is delivered again, or late, replaces
-- nothing newer. A time of processing would not do: a delete that is delivered twice would outrank
-- a later re-insert for good. Until parts are merged old rows are there beside new ones, so every
-- read says FINAL. That merges within partitions only (`do_not_merge_across_partitions_select_final`
-- in the adapter), which is right because whatever decides the partition is part of the sort key.

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

-- In the order of the questions "what have these authors written since": an author's newest posts
-- stand side by side. An author and a creation time never change, so this key is a post's identity.
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

-- "Who wrote these posts, and are they still there": a few hundred ids of millions, so small
-- granules; with the default 8,192 rows each id would read eight times as much.
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

-- "The newest posts of everybody."
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

-- "Who follows these people, and how many are they."
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

-- Comments and likes are here to be compared with PostgreSQL (`nova cdc validate`). Counters come
-- from events alone and never from these.
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
