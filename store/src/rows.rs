//! Rows as both databases hand them out, what they mean, and the queries that read the same in both.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};
use common::function::{Access, Contract, DeploymentSpec, Limits, Status};
use common::invocation::{Outcome, Record};
use common::phases::{ColdCause, Phases};
use futures_util::{Stream, TryStreamExt as _};
use serde::de::DeserializeOwned;
use sqlx::types::Json;
use uuid::Uuid;

use crate::{ActiveDeployment, Error, Function, RecordPage, RecordedCall, User};

/// `time` as a TIMESTAMP column keeps it: UTC, in microseconds.
pub(crate) fn timestamp(time: DateTime<Utc>) -> NaiveDateTime {
    time.naive_utc().trunc_subsecs(6)
}

/// A number that a column of 32 bits can hold; what is larger becomes the largest.
pub(crate) fn integer(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The same with 64 bits.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i32, what: &'static str) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Damaged(what))
}

/// A row of `users`.
#[derive(sqlx::FromRow)]
pub(crate) struct UserRow {
    id: Uuid,
    email: String,
    handle: String,
    password_hash: String,
    operator: bool,
    created_at: NaiveDateTime,
}

impl TryFrom<UserRow> for User {
    type Error = Error;

    fn try_from(row: UserRow) -> Result<Self, Error> {
        Ok(Self {
            id: row.id.into(),
            email: row.email,
            handle: row.handle.parse().map_err(|_| Error::Damaged("handle"))?,
            password_hash: row.password_hash,
            operator: row.operator,
            created_at: row.created_at.and_utc(),
        })
    }
}

/// The row of a refresh token that somebody shows.
#[derive(sqlx::FromRow)]
pub(crate) struct TokenRow {
    pub(crate) family: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) expired: bool,
    pub(crate) spent: bool,
}

/// `SELECT` of [`FunctionRow`]s with the given rest: the function, unless it was deleted, its owner's handle and its
/// active version.
macro_rules! select_functions {
    ($rest:literal) => {
        concat!(
            "SELECT f.id, f.owner_id, u.handle, f.name, f.created_at, f.updated_at,
               f.active_version IS NULL AND EXISTS (
                 SELECT 1 FROM function_deployments b WHERE b.function_id = f.id AND b.status = 'building'
               ) AS building,
               d.id AS deployment_id, d.version, d.runtime, d.entrypoint, d.archive, d.archive_root, d.access,
               d.contract, d.idle_timeout_ms, d.timeout_ms, d.memory_mb, d.concurrency, d.min_warm, d.env, d.egress,
               d.stale_while_cold_ms, d.node_selector
             FROM functions f
             JOIN users u ON u.id = f.owner_id
             LEFT JOIN function_deployments d ON d.function_id = f.id AND d.version = f.active_version
             WHERE f.deleted_at IS NULL AND ",
            $rest
        )
    };
}

/// Every function that serves.
pub(crate) const SERVING: &str = select_functions!("f.active_version IS NOT NULL");
/// The function with the id `$1`.
pub(crate) const FUNCTION: &str = select_functions!("f.id = $1");
/// The function of `$1` with the id `$2` or the name `$3`; the id wins where one looks like the other.
pub(crate) const FUNCTION_OF_OWNER: &str =
    select_functions!("f.owner_id = $1 AND (f.id = $2 OR f.name = $3) ORDER BY f.id = $2 DESC LIMIT 1");
/// At most `$3` functions of `$1` whose names come after `$2`.
pub(crate) const FUNCTIONS_OF_OWNER: &str =
    select_functions!("f.owner_id = $1 AND f.name > $2 ORDER BY f.name LIMIT $3");

/// A function; the deployment's columns are NULL where no version serves.
#[derive(sqlx::FromRow)]
pub(crate) struct FunctionRow {
    id: Uuid,
    owner_id: Uuid,
    handle: String,
    name: String,
    created_at: NaiveDateTime,
    updated_at: NaiveDateTime,
    building: bool,
    deployment_id: Option<Uuid>,
    version: Option<i32>,
    runtime: Option<String>,
    entrypoint: Option<String>,
    archive: Option<String>,
    archive_root: Option<String>,
    access: Option<String>,
    contract: Option<String>,
    idle_timeout_ms: Option<i32>,
    timeout_ms: Option<i32>,
    memory_mb: Option<i32>,
    concurrency: Option<i32>,
    min_warm: Option<i32>,
    env: Option<Json<BTreeMap<String, String>>>,
    egress: Option<bool>,
    stale_while_cold_ms: Option<i32>,
    node_selector: Option<String>,
}

impl TryFrom<FunctionRow> for Function {
    type Error = Error;

    fn try_from(mut row: FunctionRow) -> Result<Self, Error> {
        let active = match row.deployment_id.take() {
            Some(deployment) => Some(active(deployment, &mut row)?),
            None => None,
        };
        let status = match (&active, row.building) {
            (Some(_), _) => Status::Active,
            (None, true) => Status::Building,
            (None, false) => Status::Failed,
        };
        Ok(Self {
            id: row.id.into(),
            owner: row.owner_id.into(),
            owner_handle: row.handle.parse().map_err(|_| Error::Damaged("handle"))?,
            name: row.name.parse().map_err(|_| Error::Damaged("function name"))?,
            status,
            active,
            created_at: row.created_at.and_utc(),
            updated_at: row.updated_at.and_utc(),
        })
    }
}

fn active(deployment: Uuid, row: &mut FunctionRow) -> Result<ActiveDeployment, Error> {
    let number = |number: Option<i32>, what| unsigned(number.ok_or(Error::Damaged(what))?, what);
    let text = |text: &mut Option<String>, what| text.take().ok_or(Error::Damaged(what));
    let spec = DeploymentSpec {
        deployment: deployment.into(),
        function: row.id.into(),
        version: number(row.version, "version")?,
        runtime: text(&mut row.runtime, "runtime")?.parse().map_err(|_| Error::Damaged("runtime"))?,
        entrypoint: text(&mut row.entrypoint, "entrypoint")?,
        archive: text(&mut row.archive, "digest")?.parse().map_err(|_| Error::Damaged("digest"))?,
        archive_root: row.archive_root.take(),
        contract: contract(&text(&mut row.contract, "contract")?, row.idle_timeout_ms)?,
        limits: Limits {
            timeout_ms: number(row.timeout_ms, "timeout")?,
            memory_mb: number(row.memory_mb, "memory limit")?,
            concurrency: number(row.concurrency, "concurrency")?,
            min_warm: number(row.min_warm, "least warm sandboxes")?,
        },
        env: row.env.take().ok_or(Error::Damaged("environment"))?.0,
        egress: row.egress.ok_or(Error::Damaged("egress flag"))?,
        stale_while_cold_ms: number(row.stale_while_cold_ms, "age of stale answers")?,
        node_selector: text(&mut row.node_selector, "selector")?.parse().map_err(|_| Error::Damaged("selector"))?,
    };
    Ok(ActiveDeployment { spec, access: access(&text(&mut row.access, "access mode")?)? })
}

fn contract(word: &str, idle_timeout_ms: Option<i32>) -> Result<Contract, Error> {
    match (word, idle_timeout_ms) {
        ("file", None) => Ok(Contract::File),
        ("http", Some(ms)) => Ok(Contract::Http { idle_timeout_ms: unsigned(ms, "idle timeout")? }),
        _ => Err(Error::Damaged("contract")),
    }
}

fn access(word: &str) -> Result<Access, Error> {
    [Access::Private, Access::Public]
        .into_iter()
        .find(|access| access_word(*access) == word)
        .ok_or(Error::Damaged("access mode"))
}

/// The word for an access mode in the table of deployments.
pub(crate) fn access_word(access: Access) -> &'static str {
    match access {
        Access::Private => "private",
        Access::Public => "public",
    }
}

/// What a [`RecordRow`] holds. Results are as large as bodies and are shown to nobody.
macro_rules! record_columns {
    () => {
        "id, function_id, duration_ms, error, CAST(logs AS TEXT) AS logs, CAST(request_info AS TEXT) AS request_info,
         created_at, deployment_id, node_id, outcome, cold, peak_memory_bytes, gate_us, auth_us, queue_us, cold_us,
         fn_us, total_us, cold_cause"
    };
}

/// One kind of a function's records, newest first.
macro_rules! records {
    ($success:literal) => {
        concat!(
            "SELECT * FROM (
               SELECT ",
            record_columns!(),
            " FROM function_invocations
               WHERE function_id = (SELECT id FROM functions WHERE id = $1 AND owner_id = $2 AND deleted_at IS NULL)
                 AND id < $3 AND ",
            $success,
            " ORDER BY id DESC LIMIT $6
             )"
        )
    };
}

/// A function's records, newest first, as a merge of its successes and its failures, so that one index finds
/// either kind and both. `$1` function, `$2` its owner, `$3` only older ones, `$4` successes, `$5` failures, `$6`
/// how many.
pub(crate) const RECORDS: &str = concat!(
    records!("success = TRUE AND $4"),
    " AS successes UNION ALL ",
    records!("success = FALSE AND $5"),
    " AS failures ORDER BY id DESC LIMIT $6"
);

/// The id of a row of this time, before all that are made in its millisecond.
pub(crate) fn first_id(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

/// Whether there is a function `$1` of `$2`.
pub(crate) const IS_THERE: &str =
    "SELECT EXISTS (SELECT 1 FROM functions WHERE id = $1 AND owner_id = $2 AND deleted_at IS NULL)";

/// Most bytes of a page of records, as the database has them.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// A row of `function_invocations`; `status` and `success` follow from `outcome`.
#[derive(sqlx::FromRow)]
pub(crate) struct RecordRow {
    id: Uuid,
    function_id: Uuid,
    duration_ms: i32,
    error: Option<String>,
    logs: String,
    request_info: String,
    created_at: NaiveDateTime,
    deployment_id: Uuid,
    node_id: Uuid,
    outcome: String,
    cold: bool,
    peak_memory_bytes: i64,
    gate_us: Option<i64>,
    auth_us: Option<i64>,
    queue_us: Option<i64>,
    cold_us: Option<i64>,
    fn_us: Option<i64>,
    total_us: Option<i64>,
    cold_cause: Option<String>,
}

impl RecordRow {
    /// What of it may be large, in bytes.
    fn bytes(&self) -> usize {
        self.error.as_ref().map_or(0, String::len) + self.logs.len() + self.request_info.len()
    }
}

/// The first `limit` of `rows`, or as many as have room in a page.
pub(crate) async fn page(
    rows: impl Stream<Item = Result<RecordRow, sqlx::Error>>,
    limit: u32,
) -> Result<RecordPage, Error> {
    let mut rows = std::pin::pin!(rows);
    let (mut page, mut bytes) = (RecordPage::default(), 0);
    while let Some(row) = rows.try_next().await? {
        bytes += row.bytes();
        if page.records.len() == limit as usize || (bytes > MAX_PAGE_BYTES && !page.records.is_empty()) {
            page.more = true;
            break;
        }
        page.records.push(row.try_into()?);
    }
    Ok(page)
}

impl TryFrom<RecordRow> for Record {
    type Error = Error;

    fn try_from(row: RecordRow) -> Result<Self, Error> {
        let us = |us: Option<i64>| us.map(u64::try_from).transpose().map_err(|_| Error::Damaged("phase"));
        let phases = Phases {
            gate_us: us(row.gate_us)?,
            auth_us: us(row.auth_us)?,
            queue_us: us(row.queue_us)?,
            cold_us: us(row.cold_us)?,
            fn_us: us(row.fn_us)?,
            total_us: us(row.total_us)?,
            // A newer version may know more causes.
            cold_cause: row.cold_cause.as_deref().and_then(ColdCause::from_word),
        };
        Ok(Self {
            id: row.id.into(),
            function: row.function_id.into(),
            deployment: row.deployment_id.into(),
            node: row.node_id.into(),
            outcome: Outcome::from_word(&row.outcome).ok_or(Error::Damaged("outcome"))?,
            duration_ms: unsigned(row.duration_ms, "duration")?,
            error: row.error,
            logs: json(&row.logs, "log")?,
            request_info: json(&row.request_info, "request")?,
            result: None,
            cold: row.cold,
            peak_memory_bytes: u64::try_from(row.peak_memory_bytes).map_err(|_| Error::Damaged("memory peak"))?,
            created_at: row.created_at.and_utc(),
            phases,
        })
    }
}

/// The call `$1`, if its function is of `$2`.
pub(crate) const RECORDED_CALL: &str = concat!(
    "SELECT i.*, f.name, d.version, d.timeout_ms, d.memory_mb, d.concurrency, d.min_warm
    FROM (SELECT ",
    record_columns!(),
    " FROM function_invocations WHERE id = $1) AS i
    JOIN functions f ON f.id = i.function_id
    JOIN function_deployments d ON d.id = i.deployment_id
    WHERE f.owner_id = $2 AND f.deleted_at IS NULL"
);

/// A row of `function_invocations` with what it refers to.
#[derive(sqlx::FromRow)]
pub(crate) struct RecordedCallRow {
    #[sqlx(flatten)]
    record: RecordRow,
    name: String,
    version: i32,
    timeout_ms: i32,
    memory_mb: i32,
    concurrency: i32,
    min_warm: i32,
}

impl TryFrom<RecordedCallRow> for RecordedCall {
    type Error = Error;

    fn try_from(row: RecordedCallRow) -> Result<Self, Error> {
        Ok(Self {
            record: row.record.try_into()?,
            name: row.name.parse().map_err(|_| Error::Damaged("function name"))?,
            version: unsigned(row.version, "version")?,
            limits: Limits {
                timeout_ms: unsigned(row.timeout_ms, "timeout")?,
                memory_mb: unsigned(row.memory_mb, "memory limit")?,
                concurrency: unsigned(row.concurrency, "concurrency")?,
                min_warm: unsigned(row.min_warm, "least warm sandboxes")?,
            },
        })
    }
}

fn json<T: DeserializeOwned>(text: &str, what: &'static str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|_| Error::Damaged(what))
}

/// The words in the seed's `status` column.
pub(crate) fn status_word(outcome: Outcome) -> &'static str {
    if outcome == Outcome::Success { "success" } else { "error" }
}

/// Rows as what they mean.
pub(crate) fn all<Row, T: TryFrom<Row, Error = Error>>(rows: Vec<Row>) -> Result<Vec<T>, Error> {
    rows.into_iter().map(T::try_from).collect()
}
