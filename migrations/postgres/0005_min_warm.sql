-- Sandboxes of a version that are kept warm whether or not anybody calls. Versions that were there before keep none.
ALTER TABLE function_deployments ADD COLUMN
  min_warm INTEGER NOT NULL DEFAULT 0 CHECK (min_warm >= 0);
