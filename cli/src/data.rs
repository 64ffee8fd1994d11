//! Where the platform on this machine keeps its things, by the settings that its gateway has.

use std::path::{Path, PathBuf};

use common::settings::{MIB, default_data_dir};
use gateway::JwtArgs;
use store::StoreArgs;
use store::artifacts::ArtifactArgs;
use store::backup::{DatabaseLocation, Progress, Summary};

use crate::output;

/// The settings that say where.
#[derive(Debug, clap::Args)]
pub(crate) struct DataArgs {
    /// Everything on disk: database, archives, builds, keys, spool.
    #[arg(long, env = "DATA_DIR", default_value_os_t = default_data_dir())]
    pub(crate) data_dir: PathBuf,
    /// Where archives and builds lie; default: `functions` under the data directory.
    #[arg(long, env = "FUNCTIONS_DIR")]
    functions_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) artifacts: ArtifactArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

impl DataArgs {
    /// The database.
    pub(crate) fn database(&self) -> DatabaseLocation {
        DatabaseLocation { settings: self.store.clone(), data_dir: self.data_dir.clone() }
    }

    /// The directory of archives and builds.
    pub(crate) fn functions(&self) -> PathBuf {
        self.functions_dir.clone().unwrap_or_else(|| self.data_dir.join("functions"))
    }
}

/// The file under the data directory with the secret that `dartcloud dev` made.
pub(crate) const JWT_SECRET: &str = "jwt-secret";

/// Whether the settings name no secret.
pub(crate) fn has_no_secret(jwt: &JwtArgs) -> bool {
    jwt.jwt_secret_file.is_none() && jwt.jwt_secret.as_ref().is_none_or(String::is_empty)
}

/// Where the settings name no secret, the one that `dartcloud dev` made is used, if it did.
pub(crate) fn use_secret(data_dir: &Path, jwt: &mut JwtArgs) {
    let path = data_dir.join(JWT_SECRET);
    if has_no_secret(jwt) && path.exists() {
        jwt.jwt_secret_file = Some(path);
    }
}

/// How far something is.
pub(crate) fn so_far(doing: &str, progress: &Progress) -> String {
    format!("{doing}: {} rows, {} of archives and builds", progress.rows(), mib(progress.bytes()))
}

/// What there is, in one line.
pub(crate) fn contents(summary: &Summary) -> String {
    let rows = |table| summary.rows.get(table).copied().unwrap_or_default();
    format!(
        "{} users, {} functions in {} versions, {} records, {} values",
        rows("users"),
        rows("functions"),
        rows("function_deployments"),
        rows("function_invocations"),
        rows("function_data"),
    )
}

/// Says which archives a backup has not.
pub(crate) fn warn_of_missing(summary: &Summary) {
    if let Some(first) = summary.missing.first() {
        output::note(format_args!(
            "{} archives are not in the artifact store, the first is {first}: versions made of them cannot be built again",
            summary.missing.len()
        ));
    }
}

/// A size for people.
#[allow(clippy::cast_precision_loss, reason = "it is rounded anyway")]
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}
