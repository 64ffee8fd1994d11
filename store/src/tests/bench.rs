//! A database of a test's own, and the things that tests put into it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{SubsecRound as _, Utc};
use common::digest::Digest;
use common::function::{Access, Contract, Limits};
use common::ids::{DeploymentId, FunctionId, GatewayId, InvocationId, NodeId, UserId};
use common::invocation::{ContainerLogs, Logs, Outcome, Record, RequestInfo};
use common::labels::Labels;
use common::phases::{ColdCause, Phases};
use futures_util::FutureExt as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{Function, NewDeployment, NewUser, Store, StoreArgs, User};

/// A fresh database without a schema; [`drop`](FreshDatabase::drop) ends it.
pub(crate) struct FreshDatabase {
    pub(crate) args: StoreArgs,
    pub(crate) data_dir: TempDir,
}

impl FreshDatabase {
    pub(crate) fn sqlite() -> Self {
        Self { args: StoreArgs::default(), data_dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn postgres() -> Self {
        let name = format!("store_test_{}", Uuid::now_v7().simple());
        execute(&mut server().connect().await.unwrap(), &format!("CREATE DATABASE {name}")).await;
        let args = StoreArgs {
            database_url: Some(server().database(&name).to_url_lossy().to_string()),
            function_db: format!("{name}_functions"),
            database_pool_size: 5,
            ..StoreArgs::default()
        };
        Self { args, data_dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        crate::open(&self.args, self.data_dir.path()).await.unwrap()
    }

    /// A connection to the main database.
    pub(crate) async fn main(&self) -> PgConnection {
        self.args.postgres().unwrap().expect("only Postgres has one").connect().await.unwrap()
    }

    pub(crate) async fn drop(self) {
        if let Some(main) = self.args.postgres().unwrap() {
            let mut connection = server().connect().await.unwrap();
            for name in [main.get_database().unwrap(), &self.args.function_db] {
                execute(&mut connection, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            }
        }
    }
}

/// A store on a database of its own.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) place: FreshDatabase,
}

impl Bench {
    pub(crate) async fn sqlite() -> Self {
        let place = FreshDatabase::sqlite();
        Self { store: place.open().await, place }
    }

    pub(crate) async fn postgres() -> Self {
        let place = FreshDatabase::postgres().await;
        Self { store: place.open().await, place }
    }

    /// Runs a test, then drops its databases, also when it failed.
    pub(crate) async fn check(self, test: impl AsyncFnOnce(&Bench)) {
        let outcome = AssertUnwindSafe(test(&self)).catch_unwind().await;
        self.place.drop().await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    /// Whether the test runs on Postgres.
    pub(crate) fn is_postgres(&self) -> bool {
        self.place.args.database_url.is_some()
    }

    /// The number that `sql` selects.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.place.args.postgres().unwrap() {
            Some(main) => sqlx::query_scalar(sql).fetch_one(&mut main.connect().await.unwrap()).await.unwrap(),
            None => sqlx::query_scalar(sql).fetch_one(&mut self.file().await).await.unwrap(),
        }
    }

    /// A connection to FUNCTION_DB.
    pub(crate) async fn function_db(&self) -> PgConnection {
        let main = self.place.args.postgres().unwrap().expect("only Postgres has one");
        main.database(&self.place.args.function_db).connect().await.unwrap()
    }

    /// A connection to SQLite's file.
    pub(crate) async fn file(&self) -> SqliteConnection {
        let path = self.place.data_dir.path().join("dartcloud.db");
        SqliteConnectOptions::new().filename(path).foreign_keys(true).connect().await.unwrap()
    }

    /// A user with this e-mail, whose handle is what stands before the `@`.
    pub(crate) async fn user(&self, email: &str) -> User {
        self.store.create_user(new_user(email)).await.unwrap()
    }

    /// Deletes all that is left of deleted functions.
    pub(crate) async fn purge_deleted(&self) {
        while self.store.purge_deleted().await.unwrap() > 0 {}
    }

    /// A function with one version that serves.
    pub(crate) async fn serving(&self, owner: UserId, name: &str) -> Function {
        let pending = self.store.create_deployment(new_deployment(owner, name)).await.unwrap();
        self.store.activate_deployment(pending.spec.deployment, 1).await.unwrap()
    }
}

pub(crate) async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

fn server() -> PgConnectOptions {
    let url = std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty());
    let url = url.expect(
        "TEST_DATABASE_URL names no Postgres server for the store's tests: run `script/test store`, which starts one",
    );
    PgConnectOptions::from_str(&url).expect("TEST_DATABASE_URL is a Postgres URL")
}

pub(crate) fn new_user(email: &str) -> NewUser {
    let handle = email.split('@').next().unwrap().to_lowercase();
    NewUser {
        id: UserId::new(),
        email: email.to_owned(),
        handle: handle.parse().unwrap(),
        password_hash: "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".to_owned(),
        only_first: false,
    }
}

pub(crate) fn new_deployment(owner: UserId, name: &str) -> NewDeployment {
    NewDeployment {
        id: DeploymentId::new(),
        gateway: GatewayId::new(),
        function_if_new: FunctionId::new(),
        owner,
        name: name.parse().unwrap(),
        runtime: "python".parse().unwrap(),
        entrypoint: "main.py".to_owned(),
        archive: Digest::of(name.as_bytes()),
        archive_root: Some("top".to_owned()),
        access: Access::Private,
        limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 2 },
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        egress: false,
        stale_while_cold_ms: 0,
        node_selector: Labels::NONE,
        contract: Contract::File,
    }
}

pub(crate) fn record(function: &Function, outcome: Outcome) -> Record {
    let success = outcome == Outcome::Success;
    let base64 = |wanted: bool| wanted.then(|| common::base64::encode("{\"a\":1}"));
    Record {
        id: InvocationId::new(),
        function: function.id,
        deployment: function.active.as_ref().unwrap().spec.deployment,
        node: NodeId::new(),
        outcome,
        duration_ms: 12,
        error: base64(!success),
        logs: Logs {
            container: Some(ContainerLogs { stdout: "out\n".to_owned(), ..ContainerLogs::default() }),
            ..Logs::default()
        },
        request_info: RequestInfo { method: "POST".to_owned(), path: "/".to_owned(), ..RequestInfo::default() },
        result: base64(success),
        cold: !success,
        peak_memory_bytes: 5_000_000_000,
        created_at: Utc::now().trunc_subsecs(6),
        phases: Phases {
            gate_us: Some(20),
            queue_us: Some(0),
            cold_us: (!success).then_some(400_000),
            cold_cause: (!success).then_some(ColdCause::FirstCall),
            total_us: Some(u64::from(u32::MAX) + 1),
            ..Phases::default()
        },
    }
}

/// Ends a connection that a test opened, so that a database can be dropped.
pub(crate) async fn close(connection: PgConnection) {
    connection.close().await.unwrap();
}
