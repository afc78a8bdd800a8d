-- Every entry of the audit log may carry an HMAC under a key that is not in this database. Rows
-- that are there already, and rows of hosts without the key, have none. detail_bytes lets hosts
-- read pages of bounded size without reading the details first.
ALTER TABLE audit
    ADD COLUMN mac text,
    ADD COLUMN detail_bytes bigint GENERATED ALWAYS AS (octet_length(detail::text)) STORED;

-- An entry is written once. These triggers also hold for the owner of the table; only an owner who
-- drops or disables them can change an entry, and then the chain, the HMACs and the heads that
-- hosts remember show it.
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries of the audit log are never changed or removed' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();

-- Once the newest entry is authenticated, the next one must be too. A host without the key would
-- otherwise leave an entry that verification cannot tell from a forged one.
CREATE FUNCTION require_audit_mac() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.mac IS NULL AND (SELECT mac FROM audit ORDER BY id DESC LIMIT 1) IS NOT NULL THEN
        RAISE EXCEPTION 'the audit log is authenticated: configure the audit key of the other hosts on this host'
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_stays_authenticated BEFORE INSERT ON audit
    FOR EACH ROW EXECUTE FUNCTION require_audit_mac();

-- The role that hosts use needs to add and read entries only. A role that owns the table keeps its
-- rights whatever is revoked; run the migrations with another role than the hosts' to separate
-- them.
REVOKE UPDATE, DELETE, TRUNCATE ON audit FROM PUBLIC;
