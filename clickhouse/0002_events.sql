-- Raw accepted events, and the tables that detect duplicates.
--
-- A batch that is inserted again must change neither this table nor any aggregate. ClickHouse
-- ensures this if (1) the source of a materialized view and every table behind it remember the
-- blocks that they received, which is `non_replicated_deduplication_window` (off by default,
-- and a table where it is off counts twice), (2) the insert names its batch with
-- `insert_deduplication_token`, and (3) `deduplicate_blocks_in_dependent_materialized_views` is
-- on. A failed insert is therefore simply repeated, even if it wrote the raw rows and some of
-- the aggregates before it failed. The window is a number of inserts. Beyond it a repetition
-- counts twice, so the consumer repeats at once or not at all.
CREATE TABLE IF NOT EXISTS events (
    event_id        UUID,
    event_time      DateTime64(3, 'UTC'),
    accepted_at     DateTime64(3, 'UTC'),
    user_id         UInt64 COMMENT '0: nobody, as in an imported anonymous like',
    post_id         UInt64,
    author_id       UInt64 COMMENT 'as sent',
    action          Enum8('impression' = 1, 'view' = 2, 'like' = 3, 'comment' = 4, 'share' = 5, 'dwell' = 6),
    dwell_ms        Nullable(UInt32),
    device          LowCardinality(String),
    app_ver         LowCardinality(String),
    ranking_id      Nullable(UUID),
    times           UInt64 COMMENT '1; imported view counts are one row each',
    origin          Enum8('kafka' = 1, 'import' = 2),
    kafka_partition Int32 COMMENT '-1 where origin is import',
    kafka_offset    Int64,
    import_id       String COMMENT 'what identifies an imported row, e.g. like:17'
) ENGINE = MergeTree
PARTITION BY toDate(event_time)
-- Sorted by minute and then user: a batch covers a few minutes of many users, and the look-up
-- of its idempotency keys reads those minutes.
ORDER BY (toStartOfMinute(event_time), user_id, post_id, action)
TTL toDateTime(event_time) + INTERVAL 92 DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- The ids of the last day's events by user. An event id that a user sends again is a duplicate
-- at any event time, and the raw table is sorted by time, so a look-up there would read the
-- whole table. Imported events have ids of their own, which count as well. Imported likes and
-- comments have generated ids, which do not.
CREATE TABLE IF NOT EXISTS event_ids (
    user_id         UInt64,
    event_id        UUID,
    event_time      DateTime64(3, 'UTC'),
    kafka_partition Int32,
    kafka_offset    Int64
) ENGINE = MergeTree
PARTITION BY toDate(event_time)
ORDER BY (user_id, event_id)
TTL toDateTime(event_time) + INTERVAL 2 DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 512;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_to_event_ids TO event_ids AS
SELECT user_id, event_id, event_time, kafka_partition, kafka_offset
FROM events
WHERE origin = 'kafka' OR startsWith(import_id, 'event:');

-- The ids of imported rows, kept for ever: importing a directory again after its rows have
-- expired still adds nothing. No view fills this table, because views are written one after the
-- other. An id here means that its event is in all of them, so the import inserts the ids after
-- the events.
CREATE TABLE IF NOT EXISTS imported_rows (
    import_id String
) ENGINE = ReplacingMergeTree
ORDER BY import_id;
