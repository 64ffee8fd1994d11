//! Which database, and its password.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use crate::Error;

/// Where the store lives. Without `DATABASE_URL`, `POSTGRES_HOST` and `POSTGRES_PASSWORD` it is SQLite under the
/// data directory.
#[derive(Clone, clap::Args)]
pub struct StoreArgs {
    /// A Postgres URL; wins over the `POSTGRES_*` parts.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Postgres: its host name, or the directory of its Unix socket; `localhost` if only the password is set.
    #[arg(long, env = "POSTGRES_HOST")]
    pub postgres_host: Option<String>,
    /// Postgres: its port.
    #[arg(long, env = "POSTGRES_PORT", default_value_t = 5432)]
    pub postgres_port: u16,
    /// Postgres: the role.
    #[arg(long, env = "POSTGRES_USER", default_value = "dart_cloud")]
    pub postgres_user: String,
    /// Postgres: the role's password.
    #[arg(long, env = "POSTGRES_PASSWORD", hide_env_values = true)]
    pub postgres_password: Option<String>,
    /// Postgres: a file that holds the role's password.
    #[arg(long, env = "POSTGRES_PASSWORD_FILE")]
    pub postgres_password_file: Option<PathBuf>,
    /// Postgres: the main database; it has to exist.
    #[arg(long, env = "POSTGRES_DB", default_value = "dart_cloud")]
    pub postgres_db: String,
    /// Postgres: the database for the functions' own data, on the same server; created if it is missing. Nothing writes
    /// there yet.
    #[arg(long, env = "FUNCTION_DB", default_value = "functions_db")]
    pub function_db: String,
    /// Most connections to the database at once.
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub database_pool_size: u32,
    /// Longest wait for a connection, in milliseconds.
    #[arg(long, env = "DATABASE_ACQUIRE_TIMEOUT_MS", default_value_t = 5000)]
    pub database_acquire_timeout_ms: u64,
}

impl Default for StoreArgs {
    /// What nobody sets: SQLite.
    fn default() -> Self {
        Self {
            database_url: None,
            postgres_host: None,
            postgres_port: 5432,
            postgres_user: "dart_cloud".to_owned(),
            postgres_password: None,
            postgres_password_file: None,
            postgres_db: "dart_cloud".to_owned(),
            function_db: "functions_db".to_owned(),
            database_pool_size: 10,
            database_acquire_timeout_ms: 5000,
        }
    }
}

impl fmt::Debug for StoreArgs {
    /// All but the password and the URL, which may hold one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "[hidden]");
        f.debug_struct("StoreArgs")
            .field("database_url", &hidden(&self.database_url))
            .field("postgres_host", &self.postgres_host)
            .field("postgres_port", &self.postgres_port)
            .field("postgres_user", &self.postgres_user)
            .field("postgres_password", &hidden(&self.postgres_password))
            .field("postgres_password_file", &self.postgres_password_file)
            .field("postgres_db", &self.postgres_db)
            .field("function_db", &self.function_db)
            .field("database_pool_size", &self.database_pool_size)
            .field("database_acquire_timeout_ms", &self.database_acquire_timeout_ms)
            .finish()
    }
}

impl StoreArgs {
    /// How to reach the main database of Postgres; `None` when the settings name no Postgres.
    ///
    /// # Errors
    /// [`Error::Settings`]: the URL is not one of Postgres, or the password's file cannot be read.
    pub(crate) fn postgres(&self) -> Result<Option<PgConnectOptions>, Error> {
        // Compose files pass what is not set as an empty text.
        let given = |setting: &Option<String>| setting.clone().filter(|text| !text.is_empty());
        if let Some(url) = given(&self.database_url) {
            return from_url(&url).map(Some);
        }
        let file = self.postgres_password_file.as_deref().filter(|path| !path.as_os_str().is_empty());
        let password = common::settings::secret(self.postgres_password.as_deref(), "POSTGRES_PASSWORD", file)
            .map_err(Error::Settings)?;
        let host = given(&self.postgres_host);
        if host.is_none() && password.is_none() {
            return Ok(None);
        }
        let options = PgConnectOptions::new_without_pgpass()
            .host(host.as_deref().unwrap_or("localhost"))
            .port(self.postgres_port)
            .username(&self.postgres_user)
            .database(&self.postgres_db);
        Ok(Some(match password {
            Some(password) => options.password(&password),
            None => options,
        }))
    }

    /// Longest wait for a connection.
    pub(crate) fn acquire_timeout(&self) -> Duration {
        Duration::from_millis(self.database_acquire_timeout_ms)
    }
}

fn from_url(url: &str) -> Result<PgConnectOptions, Error> {
    // The driver's own message could repeat the password.
    let refuse = || {
        Error::Settings("DATABASE_URL is not a Postgres URL: write postgres://user:password@host:5432/database".into())
    };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(refuse());
    }
    PgConnectOptions::from_str(url).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut StoreArgs), expected: Result<Option<(&str, Option<&str>)>, &str>) {
        let mut args = StoreArgs::default();
        change(&mut args);
        match (args.postgres(), expected) {
            (Ok(options), Ok(expected)) => {
                let options = options.as_ref().map(|options| (options.get_host(), options.get_database()));
                assert_eq!(options, expected);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_settings_name_the_database() {
        let some = |text: &str| Some(text.to_owned());
        check(|_| {}, Ok(None));
        check(|args| args.database_url = some(""), Ok(None));
        check(|args| args.postgres_password = some(""), Ok(None));
        check(|args| args.database_url = some("postgres://u:p@db.example/x"), Ok(Some(("db.example", Some("x")))));
        check(|args| args.postgres_password = some("p"), Ok(Some(("localhost", Some("dart_cloud")))));
        check(|args| args.postgres_host = some("db"), Ok(Some(("db", Some("dart_cloud")))));
        check(|args| args.database_url = some("mysql://db/x"), Err("write postgres://"));
        check(|args| args.database_url = some("postgres://u:p@db:nan/x"), Err("write postgres://"));
        check(|args| args.postgres_password_file = Some("/nowhere/password".into()), Err("POSTGRES_PASSWORD_FILE"));
    }

    #[test]
    fn the_password_file_is_read_and_secrets_stay_hidden() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        check(
            |args| args.postgres_password_file = Some(file.path().to_owned()),
            Ok(Some(("localhost", Some("dart_cloud")))),
        );
        let secret = Some("postgres://u:s3cret@db/x".to_owned());
        let args = StoreArgs { database_url: secret, postgres_password: Some("s3cret".into()), ..StoreArgs::default() };
        assert!(!format!("{args:?}").contains("s3cret"));
    }
}
