-- Labels that the operator gives a node, over what its agent says, and which labels a version wants of its nodes.

ALTER TABLE nodes ADD COLUMN given_labels TEXT NOT NULL DEFAULT '';                -- a=b,c=d
ALTER TABLE function_deployments ADD COLUMN node_selector TEXT NOT NULL DEFAULT ''; -- a=b,c=d

DROP TRIGGER nodes_changed ON nodes;
CREATE CONSTRAINT TRIGGER nodes_changed AFTER UPDATE ON nodes
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN ((OLD.name, OLD.labels, OLD.given_labels, OLD.duty, OLD.certificate_serial, OLD.certificate_expires_at)
    IS DISTINCT FROM (NEW.name, NEW.labels, NEW.given_labels, NEW.duty, NEW.certificate_serial, NEW.certificate_expires_at))
  EXECUTE FUNCTION note_change('nodes');
