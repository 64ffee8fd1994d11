-- What a call's time went into, in microseconds. NULL is what nobody measured: a warm call has no `cold_us`, and the
-- records of an older agent have none of these.
ALTER TABLE function_invocations
  ADD COLUMN gate_us BIGINT,
  ADD COLUMN auth_us BIGINT,
  ADD COLUMN queue_us BIGINT,
  ADD COLUMN cold_us BIGINT,
  ADD COLUMN fn_us BIGINT,
  ADD COLUMN total_us BIGINT,             -- from the arrival at the agent to the outcome
  ADD COLUMN cold_cause VARCHAR(20);      -- why a sandbox was started, where the agent knew
