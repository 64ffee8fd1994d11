-- How old an answer may be that is sent while a sandbox is started, in milliseconds; 0: none is.
ALTER TABLE function_deployments
  ADD COLUMN stale_while_cold_ms INTEGER NOT NULL DEFAULT 0 CHECK (stale_while_cold_ms >= 0);
ALTER TABLE function_deployments ALTER COLUMN stale_while_cold_ms DROP DEFAULT;
