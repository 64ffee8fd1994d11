-- Several gateways over one database: what each of them keeps a picture of is numbered, and who builds a version is known.

-- How often it has changed. A number grows when its transaction commits, so who sees the number sees the change.
CREATE TABLE changes (
  what VARCHAR(20) PRIMARY KEY,
  number BIGINT NOT NULL
);

INSERT INTO changes (what, number) VALUES ('routes', 0), ('nodes', 0);

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = TG_ARGV[0];
  PERFORM pg_notify('dartcloud_changes', TG_ARGV[0]);
  RETURN NULL;
END
$$;

-- All are deferred: a deletion takes minutes, and must not hold the number's row for as long.
CREATE CONSTRAINT TRIGGER functions_serve AFTER UPDATE ON functions
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN (OLD.active_version IS DISTINCT FROM NEW.active_version)
  EXECUTE FUNCTION note_change('routes');
CREATE CONSTRAINT TRIGGER functions_gone AFTER DELETE ON functions
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN (OLD.active_version IS NOT NULL)
  EXECUTE FUNCTION note_change('routes');
CREATE CONSTRAINT TRIGGER nodes_new AFTER INSERT OR DELETE ON nodes
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  EXECUTE FUNCTION note_change('nodes');
-- That a node was seen is noted all the time, and is no change.
CREATE CONSTRAINT TRIGGER nodes_changed AFTER UPDATE ON nodes
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN ((OLD.name, OLD.labels, OLD.duty, OLD.certificate_serial, OLD.certificate_expires_at)
    IS DISTINCT FROM (NEW.name, NEW.labels, NEW.duty, NEW.certificate_serial, NEW.certificate_expires_at))
  EXECUTE FUNCTION note_change('nodes');

-- The gateway that builds it; none of versions that were there before.
ALTER TABLE function_deployments ADD COLUMN gateway_id UUID;
