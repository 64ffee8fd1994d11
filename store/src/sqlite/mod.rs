//! The store on SQLite: one file, one connection that writes, and several that read beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::ids::{DeploymentId, FunctionId, GatewayId, InvocationId, NodeId, SessionId, UserId};
use common::invocation::Record;
use common::labels::Labels;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool, SqliteTransaction};

use crate::changes::{CHANGES, Changes, Watch};
use crate::claims::{Claim, Holder, Source};
use crate::fleet::{Authorities, Authority, CertificateFacts, Duty, Joining, NewNode, Node};
use crate::{
    Error, Function, LogLine, NewDeployment, NewUser, PendingDeployment, RecordPage, RecordQuery, RecordSink,
    RecordedCall, RefreshToken, Rotation, Store, StoreArgs, User,
};

mod claims;
mod deployments;
mod fleet;
mod functions;
mod logs;
mod records;
mod tokens;
mod users;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// The file's name under the data directory.
const FILE: &str = "dartcloud.db";

/// Longest wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// By how much of the file, in KiB, each connection that reads adds to what all of them together keep in memory: the kernel
/// keeps the file anyway, and every commit makes a reader read anew. SQLite's default is 2,000
/// (<https://www.sqlite.org/pragma.html#pragma_cache_size>).
const READER_CACHE_KIB: u32 = 128;
/// The pause before a file that is busy is tried again, where SQLite does not wait by itself.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// All tables, in one file.
struct Sqlite {
    /// A single connection: writers queue for it, in order, instead of trying for SQLite's lock.
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Opens or makes the file and brings its schema up to date.
pub(crate) async fn open(data_dir: &Path, settings: &StoreArgs) -> Result<Arc<dyn Store>, Error> {
    let options = prepare(data_dir).await?;
    let pool =
        |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(settings.acquire_timeout());
    let reading = options.clone().pragma("query_only", "on").pragma("cache_size", format!("-{READER_CACHE_KIB}"));
    Ok(Arc::new(Sqlite {
        // Another connection would be another thread, and leave the heap of this one behind. Those of the readers come with
        // a crowd, and have to go again.
        writer: pool(1).max_lifetime(None).connect_lazy_with(options),
        readers: pool(settings.database_pool_size).connect_lazy_with(reading),
    }))
}

/// One connection that reads a file that is there, as it is.
pub(crate) async fn reader(data_dir: &Path) -> Result<SqliteConnection, Error> {
    let file = data_dir.join(FILE);
    if !file.exists() {
        let path = file.display();
        return Err(Error::Settings(format!("there is no {path}: set DATA_DIR, or DATABASE_URL or POSTGRES_*")));
    }
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(BUSY_TIMEOUT).pragma("query_only", "on");
    Ok(options.connect().await?)
}

/// One connection that may write, to a file that is made if there is none and whose schema is brought up to date.
pub(crate) async fn writer(data_dir: &Path) -> Result<SqliteConnection, Error> {
    Ok(prepare(data_dir).await?.connect().await?)
}

/// The number of the last migration.
pub(crate) fn schema() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Makes the file if there is none and brings its schema up to date; how to reach it.
async fn prepare(data_dir: &Path) -> Result<SqliteConnectOptions, Error> {
    let unusable = |error| {
        Error::Settings(format!(
            "cannot keep a database in {}: {error}; set DATA_DIR to a directory that can be written",
            data_dir.display()
        ))
    };
    tokio::fs::create_dir_all(data_dir).await.map_err(unusable)?;
    // Password hashes and results are in it: made by us, it is its owner's alone, and so are the files that
    // SQLite keeps beside it.
    let mut file = tokio::fs::OpenOptions::new();
    file.write(true).create(true).truncate(false).mode(0o600);
    file.open(data_dir.join(FILE)).await.map_err(unusable)?;
    let options = SqliteConnectOptions::new()
        .filename(data_dir.join(FILE))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // What was acknowledged survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    migrate(&options).await?;
    Ok(options)
}

/// Of several processes that start at once one migrates, and the others find it done. SQLite refuses at once, without
/// its own wait, whoever would change the journal's mode while another one writes
/// (<https://www.sqlite.org/rescode.html#busy>): then all is tried again.
async fn migrate(options: &SqliteConnectOptions) -> Result<(), Error> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match migrate_once(options).await {
            Err(Error::Unavailable(sqlx::Error::Database(error))) if is_busy(&*error) && Instant::now() < deadline => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            migrated => return migrated,
        }
    }
}

/// In one transaction that holds the write lock from its beginning.
async fn migrate_once(options: &SqliteConnectOptions) -> Result<(), Error> {
    let mut connection = options.connect().await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    MIGRATIONS.run_direct(None, &mut *tx, false).await?;
    tx.commit().await?;
    Ok(connection.close().await?)
}

/// Whether another process has the file; the code's low byte says so, the others in which way.
fn is_busy(error: &dyn DatabaseError) -> bool {
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

/// A transaction that writes. It takes the lock at once: one that reads first could not wait for it later.
async fn begin(writer: &SqlitePool) -> Result<SqliteTransaction<'static>, Error> {
    Ok(writer.begin_with("BEGIN IMMEDIATE").await?)
}

#[async_trait]
impl RecordSink for Sqlite {
    async fn insert_records(&self, records: &[Record]) -> Result<(), Error> {
        records::insert(&self.writer, records).await
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn ping(&self) -> Result<(), Error> {
        Ok(sqlx::query("SELECT 1").execute(&self.readers).await.map(drop)?)
    }

    async fn create_user(&self, user: NewUser) -> Result<User, Error> {
        users::create(&self.writer, user).await
    }

    async fn user_by_email(&self, email: &str) -> Result<Option<User>, Error> {
        users::by_email(&self.readers, email).await
    }

    async fn has_users(&self) -> Result<bool, Error> {
        users::any(&self.readers).await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, Error> {
        users::by_id(&self.readers, id).await
    }

    async fn add_refresh_token(&self, token: RefreshToken) -> Result<(), Error> {
        tokens::add(&self.writer, token).await
    }

    async fn rotate_refresh_token(
        &self,
        old: Digest,
        new_hash: Digest,
        expires_at: DateTime<Utc>,
        access_seconds: u32,
    ) -> Result<Rotation, Error> {
        tokens::rotate(&self.writer, old, new_hash, expires_at, access_seconds).await
    }

    async fn revoke_refresh_token(&self, hash: Digest, access_seconds: u32) -> Result<bool, Error> {
        tokens::revoke(&self.writer, hash, access_seconds).await
    }

    async fn ended_sessions(&self) -> Result<Vec<SessionId>, Error> {
        tokens::ended(&self.readers).await
    }

    async fn purge_refresh_tokens(&self) -> Result<u64, Error> {
        tokens::purge(&self.writer).await
    }

    async fn create_deployment(&self, new: NewDeployment) -> Result<PendingDeployment, Error> {
        deployments::create(&self.writer, new).await
    }

    async fn activate_deployment(&self, id: DeploymentId, build_ms: u64) -> Result<Function, Error> {
        deployments::activate(&self.writer, id, build_ms).await
    }

    async fn fail_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error> {
        deployments::fail(&self.writer, id, reason).await
    }

    async fn abandon_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), Error> {
        deployments::abandon(&self.writer, id, reason).await
    }

    async fn fail_deployments_of(&self, gateway: GatewayId) -> Result<u64, Error> {
        deployments::fail_of(&self.writer, gateway).await
    }

    async fn fail_overdue_deployments(&self, seconds: u32) -> Result<u64, Error> {
        deployments::fail_overdue(&self.writer, seconds).await
    }

    async fn append_log(&self, deployment: DeploymentId, lines: &[LogLine]) -> Result<(), Error> {
        logs::append(&self.writer, deployment, lines).await
    }

    async fn claim(&self, what: Claim, holder: Holder, seconds: u32) -> Result<bool, Error> {
        claims::claim(&self.writer, what, holder, seconds).await
    }

    async fn give_up(&self, what: Claim, holder: Holder) -> Result<(), Error> {
        claims::give_up(&self.writer, what, holder).await
    }

    async fn sources(&self, after: Option<DeploymentId>, limit: u32) -> Result<Vec<Source>, Error> {
        claims::sources(&self.readers, after, limit).await
    }

    async fn is_wanted(&self, archive: Digest) -> Result<bool, Error> {
        claims::is_wanted(&self.writer, archive).await
    }

    async fn purge_claims(&self) -> Result<u64, Error> {
        claims::purge(&self.writer).await
    }

    async fn changes(&self) -> Result<Changes, Error> {
        Ok(sqlx::query_as(CHANGES).fetch_one(&self.readers).await?)
    }

    fn watch(&self) -> Watch {
        Watch(None)
    }

    async fn serving(&self) -> Result<Vec<Function>, Error> {
        functions::serving(&self.readers).await
    }

    async fn function(&self, owner: UserId, key: &str) -> Result<Option<Function>, Error> {
        functions::find(&self.readers, owner, key).await
    }

    async fn functions(&self, owner: UserId, limit: u32, after: Option<&str>) -> Result<Vec<Function>, Error> {
        functions::list(&self.readers, owner, limit, after).await
    }

    async fn delete_function(&self, owner: UserId, function: FunctionId) -> Result<(), Error> {
        functions::delete(&self.writer, owner, function).await
    }

    async fn purge_deleted(&self) -> Result<u64, Error> {
        functions::purge_deleted(&self.writer).await
    }

    async fn purge_history(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        records::purge(&self.writer, before).await
    }

    async fn purge_versions(&self, before: DateTime<Utc>) -> Result<u64, Error> {
        deployments::purge(&self.writer, before).await
    }

    async fn records(&self, query: RecordQuery) -> Result<RecordPage, Error> {
        records::list(&self.readers, query).await
    }

    async fn recorded_call(&self, owner: UserId, id: InvocationId) -> Result<Option<RecordedCall>, Error> {
        records::find(&self.readers, owner, id).await
    }

    async fn authorities(&self) -> Result<Option<Authorities>, Error> {
        fleet::authorities(&self.readers).await
    }

    async fn found_authority(&self, new: Authority) -> Result<Authorities, Error> {
        fleet::found(&self.writer, new).await
    }

    async fn rotate_authority(&self, before: &[u8], next: Authority) -> Result<bool, Error> {
        fleet::rotate(&self.writer, before, next).await
    }

    async fn end_former_authority(&self, former: &[u8], force: bool) -> Result<bool, Error> {
        fleet::end_former(&self.writer, former, force).await
    }

    async fn reseal_authority(&self, old: &[u8], new: &[u8]) -> Result<(), Error> {
        fleet::reseal(&self.writer, old, new).await
    }

    async fn add_join_token(&self, hash: Digest, made_by: UserId, seconds: u32) -> Result<DateTime<Utc>, Error> {
        fleet::add_token(&self.writer, hash, made_by, seconds).await
    }

    async fn join_node(&self, token: Digest, node: NewNode) -> Result<Joining, Error> {
        fleet::join(&self.writer, token, node).await
    }

    async fn renew_node(&self, id: NodeId, certificate: CertificateFacts) -> Result<(), Error> {
        fleet::renew(&self.writer, id, certificate).await
    }

    async fn node_moved(&self, id: NodeId, authority: Digest) -> Result<(), Error> {
        fleet::moved(&self.writer, id, authority).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, Error> {
        fleet::nodes(&self.readers).await
    }

    async fn node_linked(&self, id: NodeId, name: &str, labels: &Labels) -> Result<(), Error> {
        fleet::linked(&self.writer, id, name, labels).await
    }

    async fn nodes_seen(&self, gateway: GatewayId, ids: &[NodeId]) -> Result<(), Error> {
        fleet::seen(&self.writer, gateway, ids).await
    }

    async fn node_links(&self, seconds: u32) -> Result<Vec<(NodeId, GatewayId)>, Error> {
        fleet::links(&self.readers, seconds).await
    }

    async fn label_node(&self, id: NodeId, before: &Labels, labels: &Labels) -> Result<bool, Error> {
        fleet::label(&self.writer, id, before, labels).await
    }

    async fn set_duty(&self, id: NodeId, duty: Duty) -> Result<(), Error> {
        fleet::set_duty(&self.writer, id, duty).await
    }

    async fn purge_fleet(&self) -> Result<u64, Error> {
        fleet::purge(&self.writer).await
    }
}
