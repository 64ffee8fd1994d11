//! The store on Postgres: a pool for the main database, and one for FUNCTION_DB.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::ids::{DeploymentId, FunctionId, GatewayId, InvocationId, NodeId, SessionId, UserId};
use common::invocation::Record;
use common::labels::Labels;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use crate::changes::{Changes, Watch};
use crate::claims::{Claim, Holder, Source};
use crate::fleet::{Authorities, Authority, CertificateFacts, Duty, Joining, NewNode, Node};
use crate::{
    Error, Function, LogLine, NewDeployment, NewUser, PendingDeployment, RecordPage, RecordQuery, RecordSink,
    RecordedCall, RefreshToken, Rotation, Store, StoreArgs, User,
};

mod changes;
mod claims;
mod deployments;
mod fleet;
mod functions;
mod logs;
mod opening;
mod records;
mod tokens;
mod users;

pub(crate) use changes::Ear;
#[cfg(test)]
pub(crate) use opening::schema;
pub(crate) use opening::{alone, prepare};

/// Longest time of one method, its wait for a connection included.
const DEADLINE: Duration = Duration::from_secs(30);

/// All of a deployment's tables in Postgres.
struct Postgres {
    main: PgPool,
    /// FUNCTION_DB: the functions' own values.
    function_data: PgPool,
    /// Where changes are heard of.
    listening: PgPool,
}

/// Opens the databases, creates FUNCTION_DB if it is missing, and brings both schemas up to date.
pub(crate) async fn open(main: PgConnectOptions, settings: &StoreArgs) -> Result<Arc<dyn Store>, Error> {
    let function_data = prepare(&main, settings).await?;
    Ok(Arc::new(Postgres {
        listening: opening::listening(main.clone(), settings),
        main: opening::pool(main, settings),
        function_data: opening::pool(function_data, settings),
    }))
}

/// A sink that connects when it is first used. Its role needs `INSERT` and `SELECT (id)` on `function_invocations`
/// and `SELECT (id)` on `functions`.
pub(crate) fn record_sink(main: PgConnectOptions, settings: &StoreArgs) -> Arc<dyn RecordSink> {
    Arc::new(Sink { main: opening::pool(main, settings) })
}

/// The table of records alone.
struct Sink {
    main: PgPool,
}

#[async_trait]
impl RecordSink for Sink {
    async fn insert_records(&self, records: &[Record]) -> Result<(), Error> {
        within(DEADLINE, records::insert(&self.main, records)).await
    }
}

#[async_trait]
impl RecordSink for Postgres {
    async fn insert_records(&self, records: &[Record]) -> Result<(), Error> {
        within(DEADLINE, records::insert(&self.main, records)).await
    }
}

/// The server has timeouts for statements, but one that hangs, or a network that swallows, needs ours.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

#[async_trait]
impl Store for Postgres {
    async fn ping(&self) -> Result<(), Error> {
        within(DEADLINE, async { Ok(sqlx::query("SELECT 1").execute(&self.main).await.map(drop)?) }).await
    }

    async fn create_user(&self, user: NewUser) -> Result<User, Error> {
        within(DEADLINE, users::create(&self.main, user)).await
    }

    async fn user_by_email(&self, email: &str) -> Result<Option<User>, Error> {
        within(DEADLINE, users::by_email(&self.main, email)).await
    }

    async fn has_users(&self) -> Result<bool, Error> {
        within(DEADLINE, users::any(&self.main)).await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, Error> {
        within(DEADLINE, users::by_id(&self.main, id)).await
    }

    async fn add_refresh_token(&self, token: RefreshToken) -> Result<(), Error> {
        within(DEADLINE, tokens::add(&self.main, token)).await
    }

    async fn rotate_refresh_token(
        &self,
        old: Digest,
        new_hash: Digest,
        expires_at: DateTime<Utc>,
        access_seconds: u32,
    ) -> Result<Rotation, Error> {
        within(DEADLINE, tokens::rotate(&self.main, old, new_hash, expires_at, access_seconds)).await
    }

    async fn revoke_refresh_token(&self, hash: Digest, access_seconds: u32) -> Result<bool, Error> {
        within(DEADLINE, tokens::revoke(&self.main, hash, access_seconds)).await
    }

    async fn ended_sessions(&self) -> Result<Vec<SessionId>, Error> {
        within(DEADLINE, tokens::ended(&self.main)).await
    }

    async fn purge_refresh_tokens(&self) -> Result<u64, Error> {
        within(DEADLINE, tokens::purge(&self.main)).await
    }

    async fn create_deployment(&self, new: NewDeployment) -> Result<PendingDeployment, Error> {
        within(DEADLINE, deployments::create(&self.main, new)).await
    }

    async fn activate_deployment(&self, id: DeploymentId, build_ms: u64) -> Result<Function, Error> {
        within(DEADLINE, deployments::activate(&self.main, id, build_ms)).await
    }

    async fn fail_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error> {
        within(DEADLINE, deployments::fail(&self.main, id, reason)).await
    }

    async fn abandon_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error> {
        within(DEADLINE, deployments::abandon(&self.main, id, reason)).await
    }

    async fn fail_deployments_of(&self, gateway: GatewayId) -> Result<u64, Error> {
        within(DEADLINE, deployments::fail_of(&self.main, gateway)).await
    }

    async fn fail_overdue_deployments(&self, seconds: u32) -> Result<u64, Error> {
        within(DEADLINE, deployments::fail_overdue(&self.main, seconds)).await
    }

    async fn append_log(&self, deployment: DeploymentId, lines: &[LogLine]) -> Result<(), Error> {
        within(DEADLINE, logs::append(&self.main, deployment, lines)).await
    }

    async fn claim(&self, what: Claim, holder: Holder, seconds: u32) -> Result<bool, Error> {
        within(DEADLINE, claims::claim(&self.main, what, holder, seconds)).await
    }

    async fn give_up(&self, what: Claim, holder: Holder) -> Result<(), Error> {
        within(DEADLINE, claims::give_up(&self.main, what, holder)).await
    }

    async fn sources(&self, after: Option<DeploymentId>, limit: u32) -> Result<Vec<Source>, Error> {
        within(DEADLINE, claims::sources(&self.main, after, limit)).await
    }

    async fn is_wanted(&self, archive: Digest) -> Result<bool, Error> {
        within(DEADLINE, claims::is_wanted(&self.main, archive)).await
    }

    async fn purge_claims(&self) -> Result<u64, Error> {
        within(DEADLINE, claims::purge(&self.main)).await
    }

    async fn changes(&self) -> Result<Changes, Error> {
        within(DEADLINE, changes::numbers(&self.main)).await
    }

    fn watch(&self) -> Watch {
        Watch(Some(Ear::new(self.listening.clone())))
    }

    async fn serving(&self) -> Result<Vec<Function>, Error> {
        within(DEADLINE, functions::serving(&self.main)).await
    }

    async fn function(&self, owner: UserId, key: &str) -> Result<Option<Function>, Error> {
        within(DEADLINE, functions::find(&self.main, owner, key)).await
    }

    async fn functions(&self, owner: UserId, limit: u32, after: Option<&str>) -> Result<Vec<Function>, Error> {
        within(DEADLINE, functions::list(&self.main, owner, limit, after)).await
    }

    async fn delete_function(&self, owner: UserId, function: FunctionId) -> Result<(), Error> {
        within(DEADLINE, functions::delete(&self.main, owner, function)).await
    }

    async fn purge_deleted(&self) -> Result<u64, Error> {
        within(DEADLINE, functions::purge_deleted(&self.main, &self.function_data)).await
    }

    async fn purge_history(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        within(DEADLINE, records::purge(&self.main, before)).await
    }

    async fn purge_versions(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        within(DEADLINE, deployments::purge(&self.main, before)).await
    }

    async fn records(&self, query: RecordQuery) -> Result<RecordPage, Error> {
        within(DEADLINE, records::list(&self.main, query)).await
    }

    async fn recorded_call(&self, owner: UserId, id: InvocationId) -> Result<Option<RecordedCall>, Error> {
        within(DEADLINE, records::find(&self.main, owner, id)).await
    }

    async fn authorities(&self) -> Result<Option<Authorities>, Error> {
        within(DEADLINE, fleet::authorities(&self.main)).await
    }

    async fn found_authority(&self, new: Authority) -> Result<Authorities, Error> {
        within(DEADLINE, fleet::found(&self.main, new)).await
    }

    async fn rotate_authority(&self, before: &[u8], next: Authority) -> Result<bool, Error> {
        within(DEADLINE, fleet::rotate(&self.main, before, next)).await
    }

    async fn end_former_authority(&self, former: &[u8], force: bool) -> Result<bool, Error> {
        within(DEADLINE, fleet::end_former(&self.main, former, force)).await
    }

    async fn reseal_authority(&self, old: &[u8], new: &[u8]) -> Result<(), Error> {
        within(DEADLINE, fleet::reseal(&self.main, old, new)).await
    }

    async fn add_join_token(&self, hash: Digest, made_by: UserId, seconds: u32) -> Result<DateTime<Utc>, Error> {
        within(DEADLINE, fleet::add_token(&self.main, hash, made_by, seconds)).await
    }

    async fn join_node(&self, token: Digest, node: NewNode) -> Result<Joining, Error> {
        within(DEADLINE, fleet::join(&self.main, token, node)).await
    }

    async fn renew_node(&self, id: NodeId, certificate: CertificateFacts) -> Result<(), Error> {
        within(DEADLINE, fleet::renew(&self.main, id, certificate)).await
    }

    async fn node_moved(&self, id: NodeId, authority: Digest) -> Result<(), Error> {
        within(DEADLINE, fleet::moved(&self.main, id, authority)).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, Error> {
        within(DEADLINE, fleet::nodes(&self.main)).await
    }

    async fn node_linked(&self, id: NodeId, name: &str, labels: &Labels) -> Result<(), Error> {
        within(DEADLINE, fleet::linked(&self.main, id, name, labels)).await
    }

    async fn nodes_seen(&self, gateway: GatewayId, ids: &[NodeId]) -> Result<(), Error> {
        within(DEADLINE, fleet::seen(&self.main, gateway, ids)).await
    }

    async fn node_links(&self, seconds: u32) -> Result<Vec<(NodeId, GatewayId)>, Error> {
        within(DEADLINE, fleet::links(&self.main, seconds)).await
    }

    async fn label_node(&self, id: NodeId, before: &Labels, labels: &Labels) -> Result<bool, Error> {
        within(DEADLINE, fleet::label(&self.main, id, before, labels)).await
    }

    async fn set_duty(&self, id: NodeId, duty: Duty) -> Result<(), Error> {
        within(DEADLINE, fleet::set_duty(&self.main, id, duty)).await
    }

    async fn purge_fleet(&self) -> Result<u64, Error> {
        within(DEADLINE, fleet::purge(&self.main)).await
    }
}
