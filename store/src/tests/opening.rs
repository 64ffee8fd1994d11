//! Opening: what a database needs to offer, and what is said when it does not.

use std::time::Duration;

use common::invocation::Outcome;
use sqlx::{AssertSqlSafe, ConnectOptions as _};
use uuid::Uuid;

use super::bench::{Bench, FreshDatabase, close, execute, record};
use crate::{Error, StoreArgs};

/// A role with this password, made by a superuser; dropped by `drop_role`.
async fn create_role(place: &FreshDatabase) -> String {
    let name = format!("store_test_{}", Uuid::now_v7().simple());
    execute(&mut place.main().await, &format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
    name
}

async fn drop_role(place: &FreshDatabase, name: &str) {
    execute(&mut place.main().await, &format!("DROP OWNED BY {name}")).await;
    execute(&mut place.main().await, &format!("DROP ROLE {name}")).await;
}

fn as_role(place: &FreshDatabase, name: &str) -> StoreArgs {
    let main = place.args.postgres().unwrap().unwrap().username(name).password("secret");
    StoreArgs { database_url: Some(main.to_url_lossy().to_string()), ..place.args.clone() }
}

#[tokio::test]
async fn the_sinks_role_may_insert_records_and_nothing_else() {
    Bench::postgres()
        .await
        .check(async |bench| {
            let function = bench.serving(bench.user("ada@example.org").await.id, "hello").await;
            let role = create_role(&bench.place).await;
            for grant in ["INSERT, SELECT (id) ON function_invocations", "SELECT (id) ON functions"] {
                execute(&mut bench.place.main().await, &format!("GRANT {grant} TO {role}")).await;
            }
            let args = as_role(&bench.place, &role);
            let sink = crate::record_sink(&args).await.unwrap().unwrap();
            sink.insert_records(&[record(&function, Outcome::Success)]).await.unwrap();
            let mut connection = args.postgres().unwrap().unwrap().connect().await.unwrap();
            for sql in ["SELECT * FROM users", "SELECT result FROM function_invocations", "DELETE FROM functions"] {
                assert!(sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.is_err(), "{sql}");
            }
            close(connection).await;
            drop(sink);
            drop_role(&bench.place, &role).await;
        })
        .await;
}

#[tokio::test]
async fn a_role_that_may_not_create_function_db_is_told_so() {
    let place = FreshDatabase::postgres().await;
    let role = create_role(&place).await;
    let opened = crate::open(&as_role(&place, &role), place.data_dir.path()).await.map(drop);
    drop_role(&place, &role).await;
    place.drop().await;
    assert!(matches!(&opened, Err(Error::Settings(text)) if text.contains("CREATEDB")), "{opened:?}");
}

#[tokio::test]
async fn what_a_server_says_of_settings_is_no_matter_of_waiting() {
    let place = FreshDatabase::postgres().await;
    let main = || place.args.postgres().unwrap().unwrap();
    let check = async |main: sqlx::postgres::PgConnectOptions, words: &str| {
        let args = StoreArgs { database_url: Some(main.to_url_lossy().to_string()), ..place.args.clone() };
        let opened = crate::open(&args, place.data_dir.path()).await.map(drop);
        assert!(matches!(&opened, Err(Error::Settings(text)) if text.contains(words)), "{opened:?}");
    };
    check(main().database("is_not_there"), "CREATE DATABASE \"is_not_there\"").await;
    check(main().username("nobody_here").password("x"), "the role `nobody_here`").await;
    place.drop().await;
}

#[tokio::test]
async fn function_db_must_not_be_the_main_database() {
    let args = StoreArgs {
        postgres_host: Some("localhost".to_owned()),
        function_db: "dart_cloud".to_owned(),
        ..StoreArgs::default()
    };
    let opened = crate::open(&args, std::path::Path::new("unused")).await.map(drop);
    assert!(matches!(&opened, Err(Error::Settings(text)) if text.contains("name another")), "{opened:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    // A port that was free a moment ago, and whose listener is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args = StoreArgs {
        postgres_host: Some("127.0.0.1".to_owned()),
        postgres_port: port,
        database_acquire_timeout_ms: 300,
        ..StoreArgs::default()
    };
    let sink = crate::record_sink(&args).await.unwrap().unwrap();
    for result in [crate::open(&args, std::path::Path::new("unused")).await.map(drop), sink.insert_records(&[]).await] {
        assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let args = StoreArgs {
        database_url: Some(format!("postgres://u@127.0.0.1:{}/x", silent.local_addr().unwrap().port())),
        database_acquire_timeout_ms: 300,
        ..StoreArgs::default()
    };
    let opening = crate::open(&args, std::path::Path::new("unused"));
    let opened = tokio::time::timeout(Duration::from_secs(10), opening).await.unwrap().map(drop);
    assert!(matches!(opened, Err(Error::Unavailable(_))), "{opened:?}");
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::sqlite().await;
    bench.user("ada@example.org").await;
    for file in std::fs::read_dir(bench.place.data_dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
    }
}

#[tokio::test]
async fn a_data_dir_that_cannot_be_made_is_a_setting_to_mend() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let opened = crate::open(&StoreArgs::default(), &file.path().join("below")).await.map(drop);
    assert!(matches!(&opened, Err(Error::Settings(text)) if text.contains("DATA_DIR")), "{opened:?}");
}
