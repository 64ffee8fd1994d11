-- Labels that the operator gives a node, over what its agent says, and which labels a version wants of its nodes.

ALTER TABLE nodes ADD COLUMN given_labels TEXT NOT NULL DEFAULT '';
ALTER TABLE function_deployments ADD COLUMN node_selector TEXT NOT NULL DEFAULT '';

DROP TRIGGER nodes_changed;
CREATE TRIGGER nodes_changed AFTER UPDATE ON nodes
  WHEN OLD.name IS NOT NEW.name OR OLD.labels IS NOT NEW.labels OR OLD.given_labels IS NOT NEW.given_labels
    OR OLD.duty IS NOT NEW.duty OR OLD.certificate_serial IS NOT NEW.certificate_serial
    OR OLD.certificate_expires_at IS NOT NEW.certificate_expires_at
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'nodes';
END;
