//! Opening Postgres: connections, FUNCTION_DB, migrations.

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool};

use super::{DEADLINE, within};
use crate::{Error, StoreArgs};

static MAIN: Migrator = sqlx::migrate!("../migrations/postgres");
static FUNCTION_DATA: Migrator = sqlx::migrate!("../migrations/postgres/function_db");

/// Longest time of all migrations, the wait for those of another gateway included.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(600);

/// Longest wait for a lock of somebody else's, where a backup is restored.
const LOCK_DEADLINE: &str = "10s";

/// A pool that connects when it is first used.
pub(super) fn pool(options: PgConnectOptions, settings: &StoreArgs) -> PgPool {
    // TIMESTAMP columns and CURRENT_TIMESTAMP are UTC by the session's time zone, whatever the server's is.
    let session = [
        ("timezone", "UTC".to_owned()),
        ("statement_timeout", format!("{}ms", DEADLINE.as_millis())),
        ("idle_in_transaction_session_timeout", format!("{}ms", DEADLINE.as_millis())),
    ];
    PgPoolOptions::new()
        .max_connections(settings.database_pool_size)
        .acquire_timeout(settings.acquire_timeout())
        .connect_lazy_with(options.application_name("dartcloud").options(session))
}

/// A pool of the one connection that listens.
pub(super) fn listening(options: PgConnectOptions, settings: &StoreArgs) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(settings.acquire_timeout())
        .connect_lazy_with(options.application_name("dartcloud"))
}

/// One connection for work that takes as long as it takes, but for others' locks.
pub(crate) async fn alone(options: &PgConnectOptions, settings: &StoreArgs) -> Result<PgConnection, Error> {
    let session = [
        ("timezone", "UTC"),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("lock_timeout", LOCK_DEADLINE),
    ];
    let options = options.clone().application_name("dartcloud").options(session);
    within(settings.acquire_timeout(), async { Ok(options.connect().await?) }).await
}

/// The number of the last migration of the main database.
#[cfg(test)]
pub(crate) fn schema() -> i64 {
    MAIN.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Creates FUNCTION_DB if it is missing and brings both databases up to date; how to reach FUNCTION_DB.
pub(crate) async fn prepare(main: &PgConnectOptions, settings: &StoreArgs) -> Result<PgConnectOptions, Error> {
    let (function_db, connect_timeout) = (settings.function_db.as_str(), settings.acquire_timeout());
    if main.get_database().unwrap_or(main.get_username()) == function_db {
        return Err(Error::Settings(format!("FUNCTION_DB is `{function_db}`, as is the main database: name another")));
    }
    let mut connection = within(connect_timeout, connect(main)).await.map_err(|error| refused(error, main))?;
    within(DEADLINE, ensure_database(&mut connection, function_db)).await?;
    migrate(&MAIN, connection).await?;

    let function_data = main.clone().database(function_db);
    let connection = within(connect_timeout, connect(&function_data)).await?;
    migrate(&FUNCTION_DATA, connection).await?;
    Ok(function_data)
}

/// What a server says of settings is theirs to mend, and no waiting does.
fn refused(error: Error, options: &PgConnectOptions) -> Error {
    let Error::Unavailable(sqlx::Error::Database(cause)) = &error else { return error };
    match cause.code().as_deref() {
        Some("28000" | "28P01") => Error::Settings(format!(
            "Postgres does not take the role `{}` with this password: check POSTGRES_USER and POSTGRES_PASSWORD, or \
             DATABASE_URL ({cause})",
            options.get_username()
        )),
        Some("3D000") => {
            let name = options.get_database().unwrap_or(options.get_username());
            Error::Settings(format!(
                "Postgres has no database `{name}`: create it (`CREATE DATABASE \"{name}\"`), or set POSTGRES_DB or \
                 DATABASE_URL to the one that there is"
            ))
        }
        _ => error,
    }
}

/// Not through a pool, whose timeout would hide why a server cannot be reached.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    Ok(options.clone().options([("timezone", "UTC")]).connect().await?)
}

/// Of several gateways that start at once, one migrates and the others wait: sqlx takes an advisory lock.
async fn migrate(migrations: &Migrator, mut connection: PgConnection) -> Result<(), Error> {
    within(MIGRATION_DEADLINE, async {
        migrations.run_direct(None, &mut connection, false).await?;
        Ok(connection.close().await?)
    })
    .await
}

async fn ensure_database(connection: &mut PgConnection, name: &str) -> Result<(), Error> {
    if exists(connection, name).await? {
        return Ok(());
    }
    let quoted = name.replace('"', "\"\"");
    let created = sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{quoted}\""))).execute(&mut *connection).await;
    match created {
        Ok(_) => Ok(()),
        // Another gateway was faster.
        Err(_) if exists(connection, name).await? => Ok(()),
        Err(error) => Err(Error::Settings(format!(
            "the database `{name}` (FUNCTION_DB) is missing and cannot be created: create it, or give the role \
             CREATEDB ({error})"
        ))),
    }
}

async fn exists(connection: &mut PgConnection, name: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)";
    Ok(sqlx::query_scalar(sql).bind(name).fetch_one(connection).await?)
}
