-- Optional: ClickHouse reads `events` from Kafka by itself (T017, T018, T071), where the host's own
-- consumer does it by default. `nova migrate` never applies this file. Apply it by hand, after
-- putting your brokers, and your topic if it has a prefix, into the two settings below; and set
-- `stores.consume_events = false` (NOVA_CONSUME_EVENTS) on every host, because the two know nothing
-- of each other and each event would count twice.
--
-- What it gives up, which is why it is not the default:
--   * Exactly once. The engine commits offsets after its insert and names no batch: whatever it
--     reads again after a restart or a rebalance is inserted again, and counts again in every
--     aggregate. The host's consumer repeats a batch under the same token, see 0002_events.sql.
--   * Duplicates. It stores an event that was sent twice, where the host's consumer looks up
--     idempotency keys and event ids first (SEMANTICS, "Events").
--   * Dead letters. What cannot be parsed goes to `events_kafka_errors` here, not to `events_dlq`, and
--     the host's metrics of lag, duplicates and dead letters stand still.
-- What it gains: events go on being counted while every host is down.

CREATE TABLE IF NOT EXISTS events_kafka (
    event_id      UUID,
    event_time_ms Int64,
    accepted_ms   Int64,
    user_id       UInt64,
    post_id       UInt64,
    author_id     UInt64,
    action        Enum8('impression' = 1, 'view' = 2, 'like' = 3, 'comment' = 4, 'share' = 5, 'dwell' = 6),
    dwell_ms      Nullable(UInt32),
    device        String,
    app_ver       String,
    ranking_id    Nullable(UUID)
) ENGINE = Kafka
SETTINGS
    kafka_broker_list = 'localhost:9092',
    kafka_topic_list = 'events',
    kafka_group_name = 'nova-clickhouse-engine',
    kafka_format = 'JSONEachRow',
    kafka_num_consumers = 4,
    kafka_thread_per_consumer = 1,
    -- A message that is no event must not stop those behind it.
    kafka_handle_error_mode = 'stream';

CREATE TABLE IF NOT EXISTS events_kafka_errors (
    received_at     DateTime64(3, 'UTC'),
    kafka_partition Int32,
    kafka_offset    Int64,
    error           String,
    message         String
) ENGINE = MergeTree
ORDER BY received_at
TTL toDateTime(received_at) + INTERVAL 30 DAY;

CREATE MATERIALIZED VIEW IF NOT EXISTS events_kafka_to_errors TO events_kafka_errors AS
SELECT now64(3) AS received_at, toInt32(_partition) AS kafka_partition, toInt64(_offset) AS kafka_offset,
       _error AS error, _raw_message AS message
FROM events_kafka
WHERE notEmpty(_error);

-- Last, because reading begins with it.
CREATE MATERIALIZED VIEW IF NOT EXISTS events_kafka_to_events TO events AS
SELECT
    event_id,
    fromUnixTimestamp64Milli(event_time_ms, 'UTC') AS event_time,
    fromUnixTimestamp64Milli(accepted_ms, 'UTC') AS accepted_at,
    user_id, post_id, author_id, action, dwell_ms, device, app_ver, ranking_id,
    1 AS times,
    'kafka' AS origin,
    toInt32(_partition) AS kafka_partition,
    toInt64(_offset) AS kafka_offset,
    '' AS import_id
FROM events_kafka
WHERE empty(_error);
