//! `dartcloud migrate`: from one database to another.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use common::settings::default_data_dir;
use store::StoreArgs;
use store::backup::{self, DatabaseLocation, Progress};

use crate::data::contents;
use crate::{output, progress};

/// The options of `migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database to read: `sqlite:DIRECTORY` or `postgres://user@host/database`. Default: SQLite in DATA_DIR.
    #[arg(long)]
    from: Option<Database>,
    /// The database to write, which has to be empty. The password may stand in PGPASSWORD.
    #[arg(long)]
    to: Database,
    /// Delete everything that is in that database first.
    #[arg(long)]
    replace: bool,
    /// Everything on disk: database, archives, builds, keys, spool.
    #[arg(long, env = "DATA_DIR", default_value_os_t = default_data_dir())]
    data_dir: PathBuf,
    /// Postgres: the database of the functions' own data, on the same server; created if it is missing.
    #[arg(long, env = "FUNCTION_DB", default_value = "functions_db")]
    function_db: String,
}

/// Which database.
#[derive(Clone)]
enum Database {
    /// The directory that SQLite's file is in.
    Sqlite(PathBuf),
    /// A URL.
    Postgres(String),
}

impl fmt::Debug for Database {
    /// All but the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(data_dir) => f.debug_tuple("Sqlite").field(data_dir).finish(),
            Self::Postgres(_) => f.write_str("Postgres"),
        }
    }
}

impl FromStr for Database {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("sqlite", rest)) if !matches!(rest, "" | "//") => {
                Ok(Self::Sqlite(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))))
            }
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(text.to_owned())),
            _ => Err("write sqlite:DIRECTORY or postgres://user@host/database"),
        }
    }
}

impl Database {
    fn location(self, function_db: &str) -> DatabaseLocation {
        let settings = StoreArgs { function_db: function_db.to_owned(), ..StoreArgs::default() };
        match self {
            Self::Sqlite(data_dir) => DatabaseLocation { settings, data_dir },
            Self::Postgres(url) => DatabaseLocation {
                settings: StoreArgs { database_url: Some(url), ..settings },
                data_dir: PathBuf::new(),
            },
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let from = args.from.unwrap_or_else(|| Database::Sqlite(args.data_dir.clone()));
    // Of Postgres nobody can be kept out.
    let held = [&from, &args.to].into_iter().filter_map(|database| match database {
        Database::Sqlite(data_dir) if data_dir.exists() => Some(gateway::hold(data_dir)),
        Database::Sqlite(_) | Database::Postgres(_) => None,
    });
    let _held = held.collect::<Result<Vec<_>, _>>()?;
    let (from, to) = (from.location(&args.function_db), args.to.location(&args.function_db));
    let far = Progress::default();
    let copying = backup::copy(&from, &to, args.replace, &far);
    let summary = progress::shown(|| format!("copying: {} rows", far.rows()), copying).await?;
    output::line(format_args!("copied and counted: {}", contents(&summary)))?;
    Ok(())
}
