//! What goes wrong with a database, told apart by what the caller can do about it.

use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

/// What went wrong with a query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has that e-mail.
    #[error("already taken")]
    Taken,
    /// Somebody has registered already.
    #[error("not the first user")]
    NotFirst,
    /// There is no such row, or it is somebody else's.
    #[error("not found")]
    NotFound,
    /// The database does not answer, or its pool is exhausted: worth another try.
    #[error("the database does not answer")]
    Unavailable(#[source] sqlx::Error),
    /// Anything else: a bug, or a damaged row.
    #[error("the database refused a query")]
    Query(#[source] sqlx::Error),
    /// A migration failed.
    #[error("the schema cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A column holds what its type cannot.
    #[error("a stored {0} is not valid")]
    Damaged(&'static str),
    /// The settings cannot be used; the sentence says which and what to write. Only when a store is opened.
    #[error("{0}")]
    Settings(String),
}

impl Error {
    /// For an insertion where a unique column that is taken is the caller's news, and no bug.
    pub(crate) fn of_unique(error: sqlx::Error) -> Self {
        if error.as_database_error().is_some_and(|error| error.is_unique_violation()) {
            return Self::Taken;
        }
        error.into()
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let passing = match &error {
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
            E::BeginFailed => true,
            E::Database(error) => {
                if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
                    passes_in_postgres(error.code())
                } else if let Some(error) = error.try_downcast_ref::<SqliteError>() {
                    passes_in_sqlite(error)
                } else {
                    false
                }
            }
            _ => false,
        };
        if passing { Self::Unavailable(error) } else { Self::Query(error) }
    }
}

/// Whether a Postgres error is one of the server's state and not of the query (appendix A of its manual). Records
/// wait in their spool for these to pass; what is refused for good is set aside.
fn passes_in_postgres(code: &str) -> bool {
    const CLASSES: [&str; 6] = [
        "08", // connection lost
        "28", // the role or its password is not set up
        "3D", // nor is the database
        "53", // disk full, out of memory, too many connections
        "57", // shutting down, starting, cancelled by a timeout
        "58", // I/O error
    ];
    const CODES: [&str; 7] = [
        "25006", // read-only: a standby, during a failover
        "40001", // serialization failure
        "40P01", // deadlock
        "42501", // the role has not been granted this yet
        "42P01", // no such table: migrations have not run yet
        "42703", // nor has the one that adds this column
        "55P03", // lock not available
    ];
    CODES.contains(&code) || CLASSES.iter().any(|class| code.starts_with(class))
}

/// The same for SQLite, by its primary result code.
fn passes_in_sqlite(error: &SqliteError) -> bool {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    const IOERR: i32 = 10;
    const FULL: i32 = 13;
    const CANTOPEN: i32 = 14;
    use sqlx::error::DatabaseError as _;
    let extended: i32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    [BUSY, LOCKED, IOERR, FULL, CANTOPEN].contains(&(extended & 0xff))
}
