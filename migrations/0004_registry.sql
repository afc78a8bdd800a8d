-- The policy registry: one truth for all hosts. What is `json` here is kept as it was written,
-- which `jsonb` does not do: a policy's digest is taken over its numbers.

-- Its one row is the lock that orders changes, and the revision that every host compares.
CREATE TABLE registry_revision (
    id       smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    revision bigint NOT NULL
);
INSERT INTO registry_revision (revision) VALUES (0);

-- Bytes are kept under their digest for ever: a published version must run the same code after any
-- upgrade of a host.
CREATE TABLE policy_modules (
    digest text PRIMARY KEY,
    bytes  bytea NOT NULL
);
-- WebAssembly hardly compresses, and hosts read modules whole.
ALTER TABLE policy_modules ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE policies (
    name            text NOT NULL,
    version         text NOT NULL,
    digest          text NOT NULL,
    spec            json NOT NULL,
    published_at_ms bigint NOT NULL,
    PRIMARY KEY (name, version)
);

-- A stack: the row with the highest id is the active policy.
CREATE TABLE policy_activations (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    policy text NOT NULL
);

CREATE TABLE experiments (
    key  text PRIMARY KEY,
    body json NOT NULL
);

CREATE TABLE cohorts (
    key  text PRIMARY KEY,
    rule json NOT NULL
);

CREATE TABLE flags (
    name    text PRIMARY KEY,
    enabled boolean NOT NULL
);

-- Every change writes one row here in its own transaction, under the revision it makes: a missing
-- number is a missing row.
CREATE TABLE audit (
    id      bigint PRIMARY KEY,
    at_ms   bigint NOT NULL,
    actor   text NOT NULL,
    action  text NOT NULL,
    subject text NOT NULL,
    detail  json NOT NULL
);

-- Hosts listen on this channel and look at once; a notification is sent when its transaction
-- commits, so none ever announces what cannot be read yet.
CREATE FUNCTION announce_registry_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('nova_registry', NEW.revision::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER announce_registry_change AFTER UPDATE ON registry_revision
    FOR EACH ROW EXECUTE FUNCTION announce_registry_change();
