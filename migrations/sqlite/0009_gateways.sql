-- As in Postgres. A gateway that takes over from another has the file open beside it for a while.

CREATE TABLE changes (
  what VARCHAR(20) PRIMARY KEY,
  number BIGINT NOT NULL
);

INSERT INTO changes (what, number) VALUES ('routes', 0), ('nodes', 0);

CREATE TRIGGER functions_serve AFTER UPDATE ON functions
  WHEN OLD.active_version IS NOT NEW.active_version
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'routes';
END;
CREATE TRIGGER functions_gone AFTER DELETE ON functions WHEN OLD.active_version IS NOT NULL
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'routes';
END;
CREATE TRIGGER nodes_new AFTER INSERT ON nodes
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'nodes';
END;
CREATE TRIGGER nodes_gone AFTER DELETE ON nodes
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'nodes';
END;
CREATE TRIGGER nodes_changed AFTER UPDATE ON nodes
  WHEN OLD.name IS NOT NEW.name OR OLD.labels IS NOT NEW.labels OR OLD.duty IS NOT NEW.duty
    OR OLD.certificate_serial IS NOT NEW.certificate_serial
    OR OLD.certificate_expires_at IS NOT NEW.certificate_expires_at
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'nodes';
END;

ALTER TABLE function_deployments ADD COLUMN gateway_id BLOB;
