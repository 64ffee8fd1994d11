//! Settings that every program of the platform has, and how a secret is read from a file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::archive::Caps;

/// What gateway and agent both need to know; `dartcloud dev` gives both the same.
#[derive(Clone, Debug, clap::Args)]
pub struct Shared {
    /// Where things lie.
    #[command(flatten)]
    pub place: Place,
    /// How large bodies may be.
    #[command(flatten)]
    pub bodies: BodyLimits,
    /// How large archives may be.
    #[command(flatten)]
    pub archives: Caps,
}

/// Where a program keeps its things.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// Everything on disk: database, archives, builds, keys, spool.
    #[arg(long, env = "DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Where metrics and probes are served; keep it off the public network.
    #[arg(long, env = "OPS_ADDR", default_value = "127.0.0.1:9464", value_parser = crate::options::socket_address)]
    pub ops_addr: SocketAddr,
    /// The Unix socket between gateway and agent; default: `link.sock` under the data directory.
    #[arg(long, env = "LINK_SOCKET")]
    pub link_socket: Option<PathBuf>,
    /// A directory of runtimes (`*.toml`) that are added to the built-in ones, or replace them.
    #[arg(long, env = "RUNTIMES_DIR")]
    pub runtimes_dir: Option<PathBuf>,
}

impl Place {
    /// The link's socket, wherever it was put.
    #[must_use]
    pub fn link_socket(&self) -> PathBuf {
        self.link_socket.clone().unwrap_or_else(|| self.data_dir.join("link.sock"))
    }
}

/// How large a body may be under the file contract. The gateway counts, the agent counts again.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct BodyLimits {
    /// Largest request body, in MiB. Under the file contract it has to fit into `SANDBOX_EXCHANGE_MB` together with the
    /// result; a binary body takes a third more.
    #[arg(long, env = "MAX_REQUEST_MB", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_request_mb: u32,
    /// Largest result, in MiB.
    #[arg(long, env = "MAX_RESPONSE_MB", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_response_mb: u32,
}

impl BodyLimits {
    /// Largest request body, in bytes.
    #[must_use]
    pub fn request_bytes(&self) -> usize {
        self.max_request_mb as usize * MIB
    }

    /// Largest result, in bytes.
    #[must_use]
    pub fn response_bytes(&self) -> usize {
        self.max_response_mb as usize * MIB
    }
}

/// One MiB, in bytes.
pub const MIB: usize = 1024 * 1024;

/// `$XDG_DATA_HOME/dartcloud`, else `~/.local/share/dartcloud`, else `/var/lib/dartcloud`.
#[must_use]
pub fn default_data_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("XDG_DATA_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("dartcloud")
}

/// A setting that stands in the environment or in the file that `{name}_FILE` names (as Docker secrets do).
///
/// # Errors
/// The file is named and cannot be read; the sentence says which.
pub fn secret(value: Option<&str>, name: &str, file: Option<&Path>) -> Result<Option<String>, String> {
    match (value.filter(|value| !value.is_empty()), file) {
        (Some(value), _) => Ok(Some(value.to_owned())),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map(|text| Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            .map_err(|error| format!("cannot read {} (set by {name}_FILE): {error}", path.display())),
        (None, None) => Ok(None),
    }
}
