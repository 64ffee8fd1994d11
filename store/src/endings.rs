//! How things end: versions that fail, and history that is old, which goes some rows at a time, so that nobody waits.
//! All of this SQL reads the same in both databases.

/// Fails the version `$1` for the reason `$2`, if it is still being built.
pub(crate) const FAIL: &str =
    "UPDATE function_deployments SET status = 'failed', failure = $2 WHERE id = $1 AND status = 'building'";

/// Deletes the function of the version `$1`, if it has never had another one and none serves.
pub(crate) const ABANDON: &str = "DELETE FROM functions
    WHERE id = (SELECT function_id FROM function_deployments WHERE id = $1) AND active_version IS NULL
      AND NOT EXISTS (SELECT 1 FROM function_deployments d WHERE d.function_id = functions.id AND d.id <> $1)";

/// How many rows one of the following deletes at most.
pub(crate) const PURGE_ROWS: i64 = 2000;

/// Deletes at most `$2` records whose id is before `$1`. Each statement is short, so that nobody waits for it.
pub(crate) const PURGE_RECORDS: &str = "DELETE FROM function_invocations
    WHERE id IN (SELECT id FROM function_invocations WHERE id < $1 ORDER BY id LIMIT $2)";
/// The same for lines of logs.
pub(crate) const PURGE_LOGS: &str = "DELETE FROM function_logs
    WHERE id IN (SELECT id FROM function_logs WHERE id < $1 ORDER BY id LIMIT $2)";
