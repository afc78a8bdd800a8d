-- Exposures: the rankings that were served, with their policy and posts. They are read for the
-- daily metrics and for the results of experiments.
--
-- Each ranking is one row, with posts and reasons as arrays. One row per post would make fifty
-- times as many rows, and no query reads a single post. A ranking that is recorded again has
-- the same key and replaces itself.
CREATE TABLE IF NOT EXISTS served (
    ranking_id       UUID,
    request_id       String,
    user_id          UInt64,
    served_at        DateTime64(3, 'UTC'),
    served_by        LowCardinality(String),
    policy           LowCardinality(String),
    effective_digest LowCardinality(String),
    experiment       LowCardinality(String) COMMENT 'empty: none',
    variation        LowCardinality(String) COMMENT 'empty: none',
    posts            Array(UInt64) COMMENT 'in the order shown',
    reasons          Array(LowCardinality(String)) COMMENT 'one for each of posts',
    degraded         Array(LowCardinality(String)) COMMENT 'empty: nothing was missing'
) ENGINE = ReplacingMergeTree
PARTITION BY toDate(served_at)
ORDER BY (user_id, served_at, ranking_id)
TTL toDateTime(served_at) + INTERVAL 92 DAY
SETTINGS ttl_only_drop_parts = 1;

-- The viewers of each variation, sorted in the order in which they are counted.
CREATE TABLE IF NOT EXISTS variation_exposures (
    experiment LowCardinality(String),
    variation  LowCardinality(String),
    user_id    UInt64,
    ranking_id UUID,
    served_at  DateTime64(3, 'UTC')
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(served_at)
ORDER BY (experiment, variation, user_id, ranking_id)
TTL toDateTime(served_at) + INTERVAL 92 DAY;

CREATE MATERIALIZED VIEW IF NOT EXISTS served_to_variation_exposures TO variation_exposures AS
SELECT experiment, variation, user_id, ranking_id, served_at
FROM served
WHERE experiment != '' AND variation != '';
