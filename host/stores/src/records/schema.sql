CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    recorded_ms INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    why TEXT NOT NULL,
    -- Effective digests of the routed policy and of the policy that served.
    routed TEXT NOT NULL,
    served TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_policy ON records (routed, served);

-- The policies that made the rankings, so that a replay needs only this file.
CREATE TABLE IF NOT EXISTS policies (
    effective_digest TEXT PRIMARY KEY,
    spec TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS modules (
    digest TEXT PRIMARY KEY,
    bytes BLOB NOT NULL
);
