-- What a call's time went into, in microseconds. NULL is what nobody measured: a warm call has no `cold_us`, and the
-- records of an older agent have none of these.
ALTER TABLE function_invocations ADD COLUMN gate_us BIGINT;
ALTER TABLE function_invocations ADD COLUMN auth_us BIGINT;
ALTER TABLE function_invocations ADD COLUMN queue_us BIGINT;
ALTER TABLE function_invocations ADD COLUMN cold_us BIGINT;
ALTER TABLE function_invocations ADD COLUMN fn_us BIGINT;
ALTER TABLE function_invocations ADD COLUMN total_us BIGINT;     -- from the arrival at the agent to the outcome
ALTER TABLE function_invocations ADD COLUMN cold_cause TEXT;     -- why a sandbox was started, where the agent knew
