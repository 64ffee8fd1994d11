-- How a version is called. Versions that were there before are called by files.
ALTER TABLE function_deployments ADD COLUMN
  contract TEXT NOT NULL DEFAULT 'file' CHECK (contract IN ('file', 'http'));
ALTER TABLE function_deployments ADD COLUMN
  idle_timeout_ms INTEGER CHECK ((contract = 'http') = (idle_timeout_ms IS NOT NULL)); -- of the http contract alone
