//! All that is kept: users, functions, versions, records and logs in Postgres or SQLite behind one trait, and
//! archives and builds in the artifact store. SQL stands in this crate and nowhere else.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::function::{Access, Contract, DeploymentSpec, Limits, Status};
use common::ids::{DeploymentId, FunctionId, GatewayId, InvocationId, NodeId, SessionId, UserId};
use common::invocation::Record;
use common::labels::Labels;
use common::names::{FunctionName, Handle, RuntimeName};

pub mod artifacts;
pub mod backup;
pub mod changes;
pub mod claims;
mod endings;
mod error;
pub mod fleet;
mod handles;
mod moved;
mod postgres;
mod rows;
mod sessions;
pub mod settings;
mod sqlite;
#[cfg(test)]
mod tests;
mod text;

use changes::{Changes, Watch};
use claims::{Claim, Holder, Source};
pub use error::Error;
use fleet::{Authorities, Authority, CertificateFacts, Duty, Joining, NewNode, Node};
pub use sessions::{RefreshToken, Rotation};
pub use settings::StoreArgs;

/// Opens the store that the settings name and brings its schema up to date. Several programs may do so at once.
///
/// # Errors
/// [`Error::Settings`]: the settings cannot be used. Else the database does not answer, or a migration fails.
pub async fn open(settings: &StoreArgs, data_dir: &std::path::Path) -> Result<Arc<dyn Store>, Error> {
    match settings.postgres()? {
        Some(main) => postgres::open(main, settings).await,
        None => {
            moved::check(data_dir)?;
            sqlite::open(data_dir, settings).await
        }
    }
}

/// The table of records alone, for an agent that writes them itself: it migrates nothing and connects when it is
/// first used. `None` when the settings name no Postgres, for then records go through the gateway.
///
/// # Errors
/// [`Error::Settings`]: the settings cannot be used.
pub async fn record_sink(settings: &StoreArgs) -> Result<Option<Arc<dyn RecordSink>>, Error> {
    Ok(settings.postgres()?.map(|main| postgres::record_sink(main, settings)))
}

/// Someone who owns functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub id: UserId,
    /// As given, compared without case.
    pub email: String,
    /// The name in URLs.
    pub handle: Handle,
    /// An argon2id hash in PHC form.
    pub password_hash: String,
    /// Whether nodes and other users are his to run; the first user is.
    pub operator: bool,
    /// When he registered.
    pub created_at: DateTime<Utc>,
}

/// Someone who registers. The first user ever becomes the operator.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// A fresh id.
    pub id: UserId,
    /// Unique without case.
    pub email: String,
    /// The handle to try first; when it is taken, `-2`, `-3`, … is added.
    pub handle: Handle,
    /// An argon2id hash in PHC form.
    pub password_hash: String,
    /// Whether to add him only if there is nobody yet.
    pub only_first: bool,
}

/// A function as its owner sees it; `active` is the version that serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// The function's id.
    pub id: FunctionId,
    /// Whose.
    pub owner: UserId,
    /// The owner's name in URLs.
    pub owner_handle: Handle,
    /// Unique among its owner's.
    pub name: FunctionName,
    /// Whether it serves.
    pub status: Status,
    /// The version that serves; `None` until the first build succeeded.
    pub active: Option<ActiveDeployment>,
    /// When it was first deployed.
    pub created_at: DateTime<Utc>,
    /// When it, or its active version, last changed.
    pub updated_at: DateTime<Utc>,
}

/// The version that serves.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveDeployment {
    /// What nodes know of it.
    pub spec: DeploymentSpec,
    /// Who may invoke it.
    pub access: Access,
}

/// A version to be built. The store gives it the function (made if new) and the next version number.
#[derive(Clone, Debug)]
pub struct NewDeployment {
    /// A fresh id.
    pub id: DeploymentId,
    /// Who has it built.
    pub gateway: GatewayId,
    /// The id that the function gets if it is new.
    pub function_if_new: FunctionId,
    /// Whose.
    pub owner: UserId,
    /// The function's name.
    pub name: FunctionName,
    /// The language.
    pub runtime: RuntimeName,
    /// The file that starts it.
    pub entrypoint: String,
    /// The archive.
    pub archive: Digest,
    /// The archive's single top folder, if it has one.
    pub archive_root: Option<String>,
    /// Who may invoke it.
    pub access: Access,
    /// How it is called.
    pub contract: Contract,
    /// What one invocation may use.
    pub limits: Limits,
    /// The function's own environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// Whether its sandboxes have a network.
    pub egress: bool,
    /// How old an answer may be that is sent while a sandbox is started, in milliseconds; 0: none is.
    pub stale_while_cold_ms: u32,
    /// The labels that a node must have for it.
    pub node_selector: Labels,
}

impl NewDeployment {
    fn into_spec(self, function: FunctionId, version: u32) -> DeploymentSpec {
        DeploymentSpec {
            deployment: self.id,
            function,
            version,
            runtime: self.runtime,
            entrypoint: self.entrypoint,
            archive: self.archive,
            archive_root: self.archive_root,
            contract: self.contract,
            limits: self.limits,
            env: self.env,
            egress: self.egress,
            stale_while_cold_ms: self.stale_while_cold_ms,
            node_selector: self.node_selector,
        }
    }
}

/// A version whose row is there and whose build is under way.
#[derive(Clone, Debug)]
pub struct PendingDeployment {
    /// What the node has to build.
    pub spec: DeploymentSpec,
    /// Whether the function is new.
    pub is_first: bool,
}

/// A line of `function_logs`: what a build printed, and what became of a deploy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `build` or `deploy`.
    pub source: &'static str,
    /// The text.
    pub message: String,
}

/// Which records of a function to list.
#[derive(Clone, Copy, Debug)]
pub struct RecordQuery {
    /// Whose function it must be.
    pub owner: UserId,
    /// The function.
    pub function: FunctionId,
    /// At most so many, newest first.
    pub limit: u32,
    /// Only records older than this one.
    pub before: Option<InvocationId>,
    /// Only successes (`true`) or failures (`false`).
    pub success: Option<bool>,
}

/// A page of records.
#[derive(Debug, Default, PartialEq)]
pub struct RecordPage {
    /// Newest first, without their results, which nobody is shown. However many were asked for, all of them together
    /// have at most 2 MiB in the database, or it is one.
    pub records: Vec<Record>,
    /// Whether there are older ones.
    pub more: bool,
}

/// One call with what its record refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedCall {
    /// The record, without its result.
    pub record: Record,
    /// The function's name.
    pub name: FunctionName,
    /// The version that answered.
    pub version: u32,
    /// What that version may use.
    pub limits: Limits,
}

/// Where records go. The same batch can be given twice: rows that exist are kept as they are, and records of
/// functions that were deleted meanwhile are dropped, or purged with what is left of them.
#[async_trait]
pub trait RecordSink: Send + Sync {
    /// Stores a batch, all or nothing.
    async fn insert_records(&self, records: &[Record]) -> Result<(), Error>;
}

/// The database. Each method is one transaction; methods that acknowledge something to a user return after it
/// is durable.
#[async_trait]
pub trait Store: RecordSink {
    /// Whether the database answers.
    async fn ping(&self) -> Result<(), Error>;

    /// Adds a user; [`Error::Taken`] when the e-mail is, [`Error::NotFirst`] when he had to be the first.
    async fn create_user(&self, user: NewUser) -> Result<User, Error>;
    /// The user with this e-mail, compared without case.
    async fn user_by_email(&self, email: &str) -> Result<Option<User>, Error>;
    /// Whether anybody has registered.
    async fn has_users(&self) -> Result<bool, Error>;
    /// The user with this id.
    async fn user(&self, id: UserId) -> Result<Option<User>, Error>;

    /// Begins a session with its first refresh token.
    async fn add_refresh_token(&self, token: RefreshToken) -> Result<(), Error>;
    /// Spends `old` and makes a token with `new_hash` its successor, or says why not. A session that ends by this is among
    /// the [`ended_sessions`](Self::ended_sessions) for `access_seconds`: so long may access tokens of it still be good.
    async fn rotate_refresh_token(
        &self,
        old: Digest,
        new_hash: Digest,
        expires_at: DateTime<Utc>,
        access_seconds: u32,
    ) -> Result<Rotation, Error>;
    /// Ends the session of the refresh token `hash` in the same way; false when there is none, which is no error.
    async fn revoke_refresh_token(&self, hash: Digest, access_seconds: u32) -> Result<bool, Error>;
    /// The sessions that have ended and of which access tokens may still be good, in no order.
    async fn ended_sessions(&self) -> Result<Vec<SessionId>, Error>;
    /// Deletes refresh tokens that expired, and ended sessions that are past their time; how many of both.
    async fn purge_refresh_tokens(&self) -> Result<u64, Error>;

    /// Adds a version in state `building`, and its function if that is new.
    async fn create_deployment(&self, new: NewDeployment) -> Result<PendingDeployment, Error>;
    /// Makes a built version the one that serves, unless a later one already does (then it returns `Ok` and the
    /// later one stays). [`Error::NotFound`] when its function was deleted meanwhile.
    async fn activate_deployment(&self, id: DeploymentId, build_ms: u64) -> Result<Function, Error>;
    /// Marks a version as failed; the one that serves goes on.
    async fn fail_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error>;
    /// The same for the first version of a function, with which the function goes, unless it has another version by
    /// now, of another gateway perhaps.
    async fn abandon_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error>;
    /// Fails every version that `gateway` has in `building`: what its crash left behind; how many. Called once at its
    /// start.
    async fn fail_deployments_of(&self, gateway: GatewayId) -> Result<u64, Error>;
    /// Fails every version, whoever's, that has been `building` for so long that nobody can be at it; how many.
    async fn fail_overdue_deployments(&self, seconds: u32) -> Result<u64, Error>;
    /// Keeps lines of a build's or deploy's log, in order.
    async fn append_log(&self, deployment: DeploymentId, lines: &[LogLine]) -> Result<(), Error>;

    /// Claims `what` for `seconds` by the database's clock, or claims it for longer; false while another holder has it.
    async fn claim(&self, what: Claim, holder: Holder, seconds: u32) -> Result<bool, Error>;
    /// Gives a claim up; that of another holder stays.
    async fn give_up(&self, what: Claim, holder: Holder) -> Result<(), Error>;
    /// What versions were built from, failed ones included, in the order of their ids: at most `limit` after `after`.
    async fn sources(&self, after: Option<DeploymentId>, limit: u32) -> Result<Vec<Source>, Error>;
    /// Whether any version was built from this archive.
    async fn is_wanted(&self, archive: Digest) -> Result<bool, Error>;
    /// Deletes claims that expired a day ago; how many.
    async fn purge_claims(&self) -> Result<u64, Error>;

    /// How often what gateways keep a picture of has changed.
    async fn changes(&self) -> Result<Changes, Error>;
    /// Who tells when it is time to look at the [`changes`](Self::changes); it is not to be relied on alone.
    fn watch(&self) -> Watch;

    /// Every function that serves: the route table.
    async fn serving(&self) -> Result<Vec<Function>, Error>;
    /// One function of `owner`, by id or name (`key` is tried as both).
    async fn function(&self, owner: UserId, key: &str) -> Result<Option<Function>, Error>;
    /// Functions of `owner` by name, at most `limit`, after the name `after`.
    async fn functions(&self, owner: UserId, limit: u32, after: Option<&str>) -> Result<Vec<Function>, Error>;
    /// Deletes a function of `owner`: from now on it serves nobody, is not found, and its name is free. What it has goes
    /// by [`purge_deleted`](Self::purge_deleted). [`Error::NotFound`] if it is not his.
    async fn delete_function(&self, owner: UserId, function: FunctionId) -> Result<(), Error>;
    /// Deletes some of the records, logs and data of a function that was deleted, and at last itself with its versions;
    /// how many, 0 when nothing is left of any, or another gateway is at it.
    async fn purge_deleted(&self) -> Result<u64, Error>;

    /// Deletes some of the records and log lines that are older than `before`; how many, 0 when there are none left.
    async fn purge_history(&self, before: DateTime<Utc>) -> Result<u64, Error>;
    /// Deletes some of the versions that had been replaced, or had failed, before `before`; how many. The one that
    /// serves stays, and a function's last one.
    async fn purge_versions(&self, before: DateTime<Utc>) -> Result<u64, Error>;
    /// A function's records, newest first. [`Error::NotFound`] if it is not his.
    async fn records(&self, query: RecordQuery) -> Result<RecordPage, Error>;
    /// One call of a function of `owner`; `None` when there is no record of it, or it is somebody else's.
    async fn recorded_call(&self, owner: UserId, id: InvocationId) -> Result<Option<RecordedCall>, Error>;

    /// The fleet's authorities, once one was founded.
    async fn authorities(&self) -> Result<Option<Authorities>, Error>;
    /// Keeps `new` as the fleet's authority, unless another gateway was quicker; those that are kept.
    async fn found_authority(&self, new: Authority) -> Result<Authorities, Error>;
    /// Puts `next` in the place of the authority with the certificate `before`, which becomes the one before. False when it
    /// has another's place by now, or the one before it is trusted still.
    async fn rotate_authority(&self, before: &[u8], next: Authority) -> Result<bool, Error>;
    /// Ends the trust in the authority before, with the certificate `former`, unless a node depends on it and there is no
    /// `force`; whether this has ended it.
    async fn end_former_authority(&self, former: &[u8], force: bool) -> Result<bool, Error>;
    /// Replaces the sealed key of an authority, if it is still `old`.
    async fn reseal_authority(&self, old: &[u8], new: &[u8]) -> Result<(), Error>;
    /// Keeps a join token that its maker can hand out for `seconds`; until when, by the database's clock.
    async fn add_join_token(&self, hash: Digest, made_by: UserId, seconds: u32) -> Result<DateTime<Utc>, Error>;
    /// Spends a join token and keeps the node, or says why not.
    async fn join_node(&self, token: Digest, node: NewNode) -> Result<Joining, Error>;
    /// Notes a node's new certificate. [`Error::NotFound`] when it was removed.
    async fn renew_node(&self, id: NodeId, certificate: CertificateFacts) -> Result<(), Error>;
    /// Notes that a node has shown a certificate of the authority with this digest.
    async fn node_moved(&self, id: NodeId, authority: Digest) -> Result<(), Error>;
    /// Every node, those that were removed as well, by id.
    async fn nodes(&self) -> Result<Vec<Node>, Error>;
    /// Notes that a node is linked and what its agent says of it. One of the gateway's own machine is added if it is new, and
    /// is back if it was removed.
    async fn node_linked(&self, id: NodeId, name: &str, labels: &Labels) -> Result<(), Error>;
    /// Notes that these nodes are linked to `gateway`, and no others.
    async fn nodes_seen(&self, gateway: GatewayId, ids: &[NodeId]) -> Result<(), Error>;
    /// Which nodes were noted to be linked to which gateways in the last `seconds`, by the database's clock.
    async fn node_links(&self, seconds: u32) -> Result<Vec<(NodeId, GatewayId)>, Error>;
    /// Gives a node these labels in place of `before`, which the operator gave it; false when it has others by now.
    async fn label_node(&self, id: NodeId, before: &Labels, labels: &Labels) -> Result<bool, Error>;
    /// Changes what a node may do. [`Error::NotFound`] when there is none, or it was removed.
    async fn set_duty(&self, id: NodeId, duty: Duty) -> Result<(), Error>;
    /// Deletes join tokens that expired a day ago, links that were noted last before that, and removed nodes whose
    /// certificate has ended; how many.
    async fn purge_fleet(&self) -> Result<u64, Error>;
}
