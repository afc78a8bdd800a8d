-- The policy registry. Bytes are kept under their digest for ever: a published version must run
-- the same code after any upgrade of the host.
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

-- A stack: the row with the highest id is the active policy.
CREATE TABLE IF NOT EXISTS policy_activations (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    policy TEXT NOT NULL
);

-- Policies on trial (`shadow`, `canary`) and `retired` ones; of those that are not here, the stack and
-- the quarantine say where they stand.
CREATE TABLE IF NOT EXISTS policy_stages (
    policy  TEXT PRIMARY KEY,
    stage   TEXT NOT NULL,
    percent REAL
) WITHOUT ROWID;

-- By effective digest, for ever.
CREATE TABLE IF NOT EXISTS policy_quarantine (
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

-- Every change writes one row here in its own transaction, so the highest id is the revision.
CREATE TABLE IF NOT EXISTS audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
);
