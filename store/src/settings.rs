//! Which database, and its password.

/// Where the store lives. Without any of these it is SQLite under the data directory.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StoreArgs {
    /// A Postgres URL; wins over the `POSTGRES_*` parts.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
}
