//! The databases of a store, reached without its pools and their deadlines: a single connection to each, in a
//! transaction that lasts as long as a backup or a restore does.

use std::path::Path;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use super::tables::{Dialect, Home, TABLES, Table};
use crate::{Error, StoreArgs, postgres, sqlite};

/// All databases of one store.
pub(super) enum Connections {
    Sqlite(SqliteConnection),
    Postgres { main: PgConnection, function_data: PgConnection },
}

impl Connections {
    /// Opens what is there, and changes nothing: not the schema either, for a gateway of an older version may run.
    pub(super) async fn to_read(settings: &StoreArgs, data_dir: &Path) -> Result<Self, Error> {
        let mut this = match settings.postgres()? {
            None => Self::Sqlite(sqlite::reader(data_dir).await?),
            Some(main) => Self::Postgres {
                function_data: postgres::alone(&main.clone().database(&settings.function_db), settings).await?,
                main: postgres::alone(&main, settings).await?,
            },
        };
        let begin = match this.dialect() {
            Dialect::Sqlite => "BEGIN",
            Dialect::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        this.execute(Home::Main, begin).await?;
        // The first question takes the snapshot. That of the other database follows at once, and is that much newer.
        let version = "SELECT max(version) FROM _sqlx_migrations";
        let found = this.number(Home::Main, version).await;
        if this.dialect() == Dialect::Postgres {
            this.execute(Home::FunctionData, begin).await?;
            this.number(Home::FunctionData, version).await?;
        }
        let found = found.map_err(|error| match error {
            Error::Query(_) | Error::Unavailable(sqlx::Error::Database(_)) => no_schema(),
            error => error,
        })?;
        let known = schema();
        if found == known {
            return Ok(this);
        }
        Err(Error::Settings(format!(
            "the database has schema {found}, and this program knows {known}: use the program of the version that runs \
             on it, or start a gateway of this one first, which brings the schema up to date"
        )))
    }

    /// Makes the databases where there are none, brings their schema up to date, and keeps everybody else out.
    pub(super) async fn to_write(settings: &StoreArgs, data_dir: &Path) -> Result<Self, Error> {
        let mut this = match settings.postgres()? {
            None => Self::Sqlite(sqlite::writer(data_dir).await?),
            Some(main) => {
                let function_data = postgres::prepare(&main, settings).await?;
                Self::Postgres {
                    main: postgres::alone(&main, settings).await?,
                    function_data: postgres::alone(&function_data, settings).await?,
                }
            }
        };
        match this.dialect() {
            Dialect::Sqlite => {
                this.execute(Home::Main, "BEGIN IMMEDIATE").await?;
                this.execute(Home::Main, "PRAGMA defer_foreign_keys = ON").await?;
            }
            Dialect::Postgres => {
                for home in [Home::Main, Home::FunctionData] {
                    this.execute(home, "BEGIN").await?;
                    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", names(home));
                    this.execute(home, &lock).await?;
                }
                // Functions and their active versions refer to each other. This is undone before the commit.
                this.execute(Home::Main, &active_version("DEFERRABLE INITIALLY DEFERRED")).await?;
            }
        }
        Ok(this)
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres { .. } => Dialect::Postgres,
        }
    }

    /// The rows of a table, as they come.
    pub(super) fn rows(&mut self, table: &Table) -> BoxStream<'_, Result<String, Error>> {
        let sql = AssertSqlSafe(table.select(self.dialect()));
        let rows = match self.of(table.home) {
            One::Sqlite(connection) => sqlx::query_scalar(sql).fetch(connection),
            One::Postgres(connection) => sqlx::query_scalar(sql).fetch(connection),
        };
        rows.map_err(Error::from).boxed()
    }

    /// Runs an insertion of rows that are an array of arrays; how many there were.
    pub(super) async fn insert(&mut self, home: Home, sql: &str, rows: &str) -> Result<u64, Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match self.of(home) {
            One::Sqlite(connection) => sqlx::query(sql).bind(rows).execute(connection).await?.rows_affected(),
            One::Postgres(connection) => sqlx::query(sql).bind(rows).execute(connection).await?.rows_affected(),
        })
    }

    pub(super) async fn count(&mut self, table: &Table) -> Result<u64, Error> {
        let count = self.number(table.home, &format!("SELECT count(*) FROM {}", table.name)).await?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// Whether there is a row in any table.
    pub(super) async fn is_empty(&mut self) -> Result<bool, Error> {
        for table in TABLES {
            let sql = format!("SELECT CAST(count(*) AS BIGINT) FROM (SELECT 1 FROM {} LIMIT 1) AS one", table.name);
            if self.number(table.home, &sql).await? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes all rows.
    pub(super) async fn clear(&mut self) -> Result<(), Error> {
        match self.dialect() {
            Dialect::Sqlite => {
                for table in TABLES.iter().rev() {
                    self.execute(table.home, &format!("DELETE FROM {}", table.name)).await?;
                }
            }
            Dialect::Postgres => {
                for home in [Home::Main, Home::FunctionData] {
                    self.execute(home, &format!("TRUNCATE {}", names(home))).await?;
                }
            }
        }
        Ok(())
    }

    /// Deletes values of functions that are gone, which SQLite does not allow. In Postgres they live in another database,
    /// where a crash may have left them.
    pub(super) async fn drop_orphans(&mut self) -> Result<(), Error> {
        match self.dialect() {
            Dialect::Sqlite => {
                let sql = "DELETE FROM function_data WHERE function_id NOT IN (SELECT id FROM functions)";
                self.execute(Home::FunctionData, sql).await
            }
            Dialect::Postgres => Ok(()),
        }
    }

    /// Makes everything last. What refers to nothing is an error here.
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        if self.dialect() == Dialect::Postgres {
            self.execute(Home::Main, "SET CONSTRAINTS ALL IMMEDIATE").await?;
            self.execute(Home::Main, &active_version("NOT DEFERRABLE")).await?;
            // The main database last: without it, the functions' own values are nobody's.
            self.execute(Home::FunctionData, "COMMIT").await?;
        }
        self.execute(Home::Main, "COMMIT").await?;
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres { main, function_data } => {
                main.close().await?;
                function_data.close().await?;
            }
        }
        Ok(())
    }

    async fn execute(&mut self, home: Home, sql: &str) -> Result<(), Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self.of(home) {
            One::Sqlite(connection) => sql.execute(connection).await.map(drop)?,
            One::Postgres(connection) => sql.execute(connection).await.map(drop)?,
        }
        Ok(())
    }

    async fn number(&mut self, home: Home, sql: &str) -> Result<i64, Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match self.of(home) {
            One::Sqlite(connection) => sqlx::query_scalar(sql).fetch_one(connection).await?,
            One::Postgres(connection) => sqlx::query_scalar(sql).fetch_one(connection).await?,
        })
    }

    fn of(&mut self, home: Home) -> One<'_> {
        match self {
            Self::Sqlite(file) => One::Sqlite(file),
            Self::Postgres { main, function_data } => {
                One::Postgres(if home == Home::Main { main } else { function_data })
            }
        }
    }
}

/// The connection that a table is behind.
enum One<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// The number of the last migration.
pub(super) fn schema() -> i64 {
    // Both have the same numbers, which a test sees to.
    sqlite::schema()
}

fn no_schema() -> Error {
    Error::Settings("there is nothing of Dart Cloud in the database: check DATA_DIR, DATABASE_URL or POSTGRES_*".into())
}

fn names(home: Home) -> String {
    let names: Vec<_> = TABLES.iter().filter(|table| table.home == home).map(|table| table.name).collect();
    names.join(", ")
}

fn active_version(checked: &str) -> String {
    format!("ALTER TABLE functions ALTER CONSTRAINT functions_active_version {checked}")
}
