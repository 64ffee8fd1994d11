//! How things end: versions that fail, functions that are deleted, and history that is old. Where there may be many
//! rows, they go some at a time, so that nobody waits. All of this SQL reads the same in both databases.

use common::ids::FunctionId;

/// Fails the version `$1` for the reason `$2`, if it is still being built.
pub(crate) const FAIL: &str =
    "UPDATE function_deployments SET status = 'failed', failure = $2 WHERE id = $1 AND status = 'building'";

/// Deletes the function of the version `$1`, if it has never had another one and none serves.
pub(crate) const ABANDON: &str = "DELETE FROM functions
    WHERE id = (SELECT function_id FROM function_deployments WHERE id = $1) AND active_version IS NULL
      AND NOT EXISTS (SELECT 1 FROM function_deployments d WHERE d.function_id = functions.id AND d.id <> $1)";

/// Deletes the function `$1` of `$2`: it serves nobody, nobody sees it, and its name is `$3`. Its rows go later.
pub(crate) const DELETE: &str = "UPDATE functions SET active_version = NULL, name = $3, deleted_at = CURRENT_TIMESTAMP
    WHERE id = $1 AND owner_id = $2 AND deleted_at IS NULL";

/// The name of a deleted function: none that anybody can give, for it has a space.
pub(crate) fn deleted_name(function: FunctionId) -> String {
    format!("deleted {function}")
}

/// Deletes the row of the function `$1` with all that refers to it, which is little by then.
pub(crate) const PURGE_FUNCTION: &str = "DELETE FROM functions WHERE id = $1";

/// How many rows one of the following deletes at most.
pub(crate) const PURGE_ROWS: i64 = 2000;

/// Deletes at most `$2` records whose id is before `$1`. Each statement is short, so that nobody waits for it.
pub(crate) const PURGE_RECORDS: &str = "DELETE FROM function_invocations
    WHERE id IN (SELECT id FROM function_invocations WHERE id < $1 ORDER BY id LIMIT $2)";
/// The same for lines of logs.
pub(crate) const PURGE_LOGS: &str = "DELETE FROM function_logs
    WHERE id IN (SELECT id FROM function_logs WHERE id < $1 ORDER BY id LIMIT $2)";

/// Deletes at most `$2` versions that failed, or that others replaced, before versions of the id `$1` were made. Never
/// the one that serves, nor a function's last, from whose number the next one counts on. Records name versions without
/// a foreign key: who asks for this waits until there are none of so long ago.
pub(crate) const PURGE_VERSIONS: &str = "DELETE FROM function_deployments WHERE id IN (
      SELECT d.id FROM function_deployments d JOIN functions f ON f.id = d.function_id
      WHERE d.id < $1 AND EXISTS (
        SELECT 1 FROM function_deployments n
        WHERE n.function_id = d.function_id AND n.version > d.version AND n.id < $1
          AND (d.status = 'failed' OR (d.status = 'ready' AND d.version < f.active_version AND n.status = 'ready'))
      )
      ORDER BY d.id LIMIT $2
    )";

/// Deletes at most `$2` records of the function `$1`, in the order of the index that finds them: without one, Postgres
/// may read the whole table for each page.
pub(crate) const PURGE_RECORDS_OF: &str = "DELETE FROM function_invocations
    WHERE id IN (SELECT id FROM function_invocations WHERE function_id = $1 ORDER BY success, id LIMIT $2)";
/// The same for its lines of logs.
pub(crate) const PURGE_LOGS_OF: &str = "DELETE FROM function_logs
    WHERE id IN (SELECT id FROM function_logs WHERE function_id = $1 LIMIT $2)";
/// The same for its values.
pub(crate) const PURGE_VALUES_OF: &str = "DELETE FROM function_data
    WHERE function_id = $1 AND key IN (SELECT key FROM function_data WHERE function_id = $1 ORDER BY key LIMIT $2)";
