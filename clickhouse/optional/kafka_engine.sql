-- Optional: ClickHouse reads `events` from Kafka itself, instead of the host's own consumer,
-- which is the default. `nova migrate` never applies this file. To use it, put your brokers,
-- and your topic if it has a prefix, into the two settings below and apply the file by hand.
-- Then set `stores.consume_events = false` (NOVA_CONSUME_EVENTS) on every host. The two readers
-- do not know of each other, so with both of them each event would count twice.
--
-- The costs, which are the reason why it is not the default:
--
-- - Exactly-once counting. The engine commits offsets after its insert and names no batch.
--   Messages that it reads again after a restart or a rebalance are inserted again and count
--   again in every aggregate. The host's consumer repeats a batch under the same token, see
--   0002_events.sql.
-- - Deduplication. The engine stores an event that was sent twice. The host's consumer looks up
--   idempotency keys and event ids first, see docs/semantics.md, "Events".
-- - Dead letters. A message that cannot be parsed goes to `events_kafka_errors` here and not to
--   `events_dlq`. The host's metrics of lag, duplicates and dead letters stay unchanged.
--
-- The benefit: events are counted even while every host is down.

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
    -- A message that is not an event must not block the messages behind it.
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

-- This view comes last, because reading begins with it.
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
