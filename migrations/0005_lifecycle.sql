-- Where policies stand besides the stack of activations.

-- Policies on trial (`shadow`, `canary`) and `retired` ones; of those that are not here, the stack and
-- the quarantine say where they stand.
CREATE TABLE policy_stages (
    policy  text PRIMARY KEY,
    stage   text NOT NULL CHECK (stage IN ('shadow', 'canary', 'retired')),
    percent double precision CHECK ((percent IS NOT NULL) = (stage = 'canary'))
);

-- By effective digest, for ever.
CREATE TABLE policy_quarantine (
    digest text PRIMARY KEY,
    body   json NOT NULL
);
