-- Hosts take a policy out of their own service, and the fleet follows by agreement.

-- Digests that a host took out of its own service, until an operator lifts that.
CREATE TABLE policy_withdrawals (
    digest text NOT NULL,
    host   text NOT NULL,
    body   json NOT NULL,
    PRIMARY KEY (digest, host)
);

-- The latest lift of each digest. A host compares it with its own withdrawals.
CREATE TABLE policy_lifts (
    digest text PRIMARY KEY,
    body   json NOT NULL
);

-- Hosts that were seen lately, by this server's clock. It is no part of the registry's state and
-- changes no revision.
CREATE TABLE registry_hosts (
    host    text PRIMARY KEY,
    seen_at timestamptz NOT NULL
);
