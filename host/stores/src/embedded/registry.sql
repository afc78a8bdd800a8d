-- The policy registry. Module bytes are kept under their digest for ever, because a published
-- version must run the same code after any upgrade of the host.
CREATE TABLE IF NOT EXISTS policy_modules (
    digest TEXT PRIMARY KEY,
    bytes  BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS policies (
    name            TEXT NOT NULL,
    version         TEXT NOT NULL,
    digest          TEXT NOT NULL,
    spec            TEXT NOT NULL,
    published_at_ms INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) WITHOUT ROWID;

-- The activations are a stack: the row with the highest id is the active policy.
CREATE TABLE IF NOT EXISTS policy_activations (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    policy TEXT NOT NULL
);

-- Policies in `shadow` or `canary`, and `retired` ones. The state of all other policies follows
-- from the stack and the quarantine.
CREATE TABLE IF NOT EXISTS policy_stages (
    policy  TEXT PRIMARY KEY,
    stage   TEXT NOT NULL,
    percent REAL
) WITHOUT ROWID;

-- Quarantines by effective digest, until an operator lifts them.
CREATE TABLE IF NOT EXISTS policy_quarantine (
    digest TEXT PRIMARY KEY,
    body   TEXT NOT NULL
) WITHOUT ROWID;

-- Digests that a host took out of its own service, until an operator lifts that.
CREATE TABLE IF NOT EXISTS policy_withdrawals (
    digest TEXT NOT NULL,
    host   TEXT NOT NULL,
    body   TEXT NOT NULL,
    PRIMARY KEY (digest, host)
) WITHOUT ROWID;

-- The latest lift of each digest. A host compares it with its own withdrawals.
CREATE TABLE IF NOT EXISTS policy_lifts (
    digest TEXT PRIMARY KEY,
    body   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS experiments (
    key   TEXT PRIMARY KEY,
    body  TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS cohorts (
    key  TEXT PRIMARY KEY,
    rule TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS flags (
    name    TEXT PRIMARY KEY,
    enabled INTEGER NOT NULL
) WITHOUT ROWID;

-- Every change writes one row here in its own transaction, and its id is the revision. SQLite
-- remembers the highest id that AUTOINCREMENT gave, so a removed newest row does not lower the
-- revision. The hashes are null in rows that are older than the hash chain.
CREATE TABLE IF NOT EXISTS audit (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms         INTEGER NOT NULL,
    actor         TEXT NOT NULL,
    action        TEXT NOT NULL,
    subject       TEXT NOT NULL,
    detail        TEXT NOT NULL,
    previous_hash TEXT,
    hash          TEXT,
    mac           TEXT
);
