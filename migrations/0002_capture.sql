-- What Debezium captures: these five tables and nothing else of this database. The slot,
-- `nova_slot`, is made by Debezium when it first connects: a slot made earlier retains the
-- write-ahead log from then on, for a reader that may never come.

-- The whole old row in every update and delete: a delete then names the row's author and ends, not
-- its key alone, and a column whose value was too large to be logged inline is there all the same.
ALTER TABLE users REPLICA IDENTITY FULL;
ALTER TABLE posts REPLICA IDENTITY FULL;
ALTER TABLE follows REPLICA IDENTITY FULL;
ALTER TABLE comments REPLICA IDENTITY FULL;
ALTER TABLE likes REPLICA IDENTITY FULL;

-- A database administrator may have made it, where Nova's role must not.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_publication WHERE pubname = 'nova_pub') THEN
        CREATE PUBLICATION nova_pub FOR TABLE users, follows, posts, comments, likes;
    END IF;
END
$$;
