-- The aggregates that feeds read: sums that grow with every insert into `events`, in buckets,
-- so that a window can roll. Each table remembers its blocks (see 0002_events.sql), because a
-- repeated batch would otherwise count twice.

-- A post's counters by hour, sorted by post id: reading the counters of 500 posts reads 500
-- short ranges. They are summed when they are read. A dictionary of sums would be stale, and a
-- join would read the whole table. Three settings make short ranges cheap: small granules,
-- small compressed blocks (a block is decompressed as a whole), and a primary key without the
-- hour, which halves the time to find the ranges.
CREATE TABLE IF NOT EXISTS post_metrics_1h (
    post_id      UInt64,
    hour         DateTime('UTC'),
    views        UInt64,
    likes        UInt64,
    comments     UInt64,
    shares       UInt64,
    dwell_ms_sum UInt64,
    exposures    UInt64
) ENGINE = SummingMergeTree
PARTITION BY toYYYYMM(hour)
PRIMARY KEY post_id
ORDER BY (post_id, hour)
TTL hour + INTERVAL 92 DAY
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 256,
    min_compress_block_size = 4096, max_compress_block_size = 8192;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_to_post_metrics_1h TO post_metrics_1h AS
SELECT
    post_id,
    toStartOfHour(event_time) AS hour,
    sumIf(times, action = 'view') AS views,
    sumIf(times, action = 'like') AS likes,
    sumIf(times, action = 'comment') AS comments,
    sumIf(times, action = 'share') AS shares,
    sum(toUInt64(ifNull(dwell_ms, 0))) AS dwell_ms_sum,
    sumIf(times, action = 'impression') AS exposures
FROM events
GROUP BY post_id, hour;

-- The counters for trending, sorted by time and limited to the actions that trending weighs.
-- Impressions and views are nearly all events and would be read for nothing.
CREATE TABLE IF NOT EXISTS trending_1h (
    hour     DateTime('UTC'),
    post_id  UInt64,
    likes    UInt64,
    comments UInt64,
    shares   UInt64
) ENGINE = SummingMergeTree
PARTITION BY toDate(hour)
ORDER BY (hour, post_id)
TTL hour + INTERVAL 9 DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_to_trending_1h TO trending_1h AS
SELECT
    toStartOfHour(event_time) AS hour,
    post_id,
    sumIf(times, action = 'like') AS likes,
    sumIf(times, action = 'comment') AS comments,
    sumIf(times, action = 'share') AS shares
FROM events
WHERE action IN ('like', 'comment', 'share')
GROUP BY hour, post_id;

-- A viewer's interactions with an author by day. Without the day in the key, the 90 days could
-- not roll.
CREATE TABLE IF NOT EXISTS user_author_90d (
    user_id   UInt64,
    author_id UInt64,
    day       Date,
    likes     UInt64,
    comments  UInt64,
    views     UInt64
) ENGINE = SummingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (user_id, author_id, day)
TTL day + INTERVAL 92 DAY
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_to_user_author_90d TO user_author_90d AS
SELECT
    user_id,
    author_id,
    toDate(event_time) AS day,
    sumIf(times, action = 'like') AS likes,
    sumIf(times, action = 'comment') AS comments,
    sumIf(times, action = 'view') AS views
FROM events
WHERE user_id != 0 AND action IN ('like', 'comment', 'view')
GROUP BY user_id, author_id, day;

-- The authors whose posts a viewer was shown in the last day, counted from the time of
-- acceptance.
CREATE TABLE IF NOT EXISTS viewer_impressions (
    user_id     UInt64,
    accepted_at DateTime64(3, 'UTC'),
    author_id   UInt64
) ENGINE = MergeTree
PARTITION BY toDate(accepted_at)
ORDER BY (user_id, accepted_at)
TTL toDateTime(accepted_at) + INTERVAL 26 HOUR
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 1024;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_to_viewer_impressions TO viewer_impressions AS
SELECT user_id, accepted_at, author_id
FROM events
WHERE user_id != 0 AND action = 'impression';
