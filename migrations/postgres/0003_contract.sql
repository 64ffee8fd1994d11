-- How a version is called. Versions that were there before are called by files.
ALTER TABLE function_deployments
  ADD COLUMN contract VARCHAR(20) NOT NULL DEFAULT 'file' CHECK (contract IN ('file', 'http')),
  ADD COLUMN idle_timeout_ms INTEGER,           -- of the http contract alone
  ADD CHECK ((contract = 'http') = (idle_timeout_ms IS NOT NULL));
ALTER TABLE function_deployments ALTER COLUMN contract DROP DEFAULT;
