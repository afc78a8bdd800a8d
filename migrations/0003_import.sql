-- What `nova import` has to remember so that importing the same files again changes nothing.

-- The ids of imported events, known for ever, also when their raw rows have expired.
--
-- Events that clients send have no row here. Duplicates among them are found by the consumer, in
-- the store it inserts into; the claims that let `POST /api/v1/events` say `deduped` at once live
-- in the spool of the host that took them, because here they would be thousands of rows a second in
-- the very log that change data capture reads.
CREATE TABLE events_dedup (
    event_id uuid PRIMARY KEY,
    user_id  bigint NOT NULL,
    post_id  bigint NOT NULL
);

-- The offset of `--shift-to-now`, by the newest time of the files as they stand on disk. Here and
-- not beside one host: it is committed with the first rows that were moved by it.
CREATE TABLE import_offsets (
    newest_ms bigint PRIMARY KEY,
    offset_ms bigint NOT NULL
);
