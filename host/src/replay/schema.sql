CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded_ms INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    why TEXT NOT NULL,
    -- Effective digests: of the policy that was to rank, and of the one that did.
    routed TEXT NOT NULL,
    served TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_policy ON records (routed, served);

-- What the records were ranked by, so that this file is all that a replay needs.
CREATE TABLE IF NOT EXISTS policies (
    effective_digest TEXT PRIMARY KEY,
    spec TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS modules (
    digest TEXT PRIMARY KEY,
    bytes BLOB NOT NULL
);
