-- The fleet's authority is exchanged while nodes stay joined: until they have certificates of the new one, the one before is
-- trusted, too.

ALTER TABLE fleet_authority ADD COLUMN former_certificate BLOB; -- DER, of the one before, while it is trusted
ALTER TABLE fleet_authority ADD COLUMN former_sealed_key BLOB
  CHECK ((former_certificate IS NULL) = (former_sealed_key IS NULL));

-- SHA-256 of the authority by whose certificate it joined, or was linked last by a newer one; none of nodes of before this
-- column, until the first exchange.
ALTER TABLE nodes ADD COLUMN certificate_authority BLOB;

INSERT INTO changes (what, number) VALUES ('authority', 0);

-- That it is sealed anew is no change.
CREATE TRIGGER authority_changed AFTER UPDATE ON fleet_authority
  WHEN OLD.certificate IS NOT NEW.certificate OR OLD.former_certificate IS NOT NEW.former_certificate
BEGIN
  UPDATE changes SET number = number + 1 WHERE what = 'authority';
END;
