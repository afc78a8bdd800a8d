-- Every entry of the audit log carries the hash of the one before it. Rows that are there already keep
-- their nulls: the first entry that has a hash attests them all, as they are when it is written.
ALTER TABLE audit ADD COLUMN previous_hash text, ADD COLUMN hash text;

-- A host of the former version would write an entry without a hash and so break the chain; its changes
-- are refused until it is replaced. NOT VALID spares the rows that are there.
ALTER TABLE audit ADD CONSTRAINT audit_is_chained CHECK (hash IS NOT NULL) NOT VALID;
