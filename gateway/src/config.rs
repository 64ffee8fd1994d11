//! The gateway's settings, each beside the code that uses it; here they are put together.

use std::net::SocketAddr;
use std::path::PathBuf;

use common::manifest::Ceilings;
use common::settings::secret;
use store::artifacts::ArtifactArgs;

use crate::control::config::ControlArgs;
use crate::edge::limits::LimitArgs;
use crate::edge::listener::ListenArgs;
use crate::error::StartError;
use crate::fleet::config::NodePortArgs;

/// Shortest `JWT_SECRET`, in bytes: as many as HS256 has.
const MIN_SECRET_BYTES: usize = 32;

/// All settings of a gateway but those that an agent has, too: [`Shared`](common::settings::Shared) and the store's.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "gateway")]
pub struct Settings {
    /// The public listener.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Rates.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Who signs tokens.
    #[command(flatten)]
    pub jwt: JwtArgs,
    /// What functions may ask for.
    #[command(flatten)]
    pub ceilings: Ceilings,
    /// The control API.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The node port.
    #[command(flatten)]
    pub nodes: NodePortArgs,
    /// Where archives and builds are kept.
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
    /// Where archives and builds lie without `ARTIFACTS_URL`, and uploads until they are checked; default: `functions`
    /// under the data directory.
    #[arg(long, env = "FUNCTIONS_DIR")]
    pub functions_dir: Option<PathBuf>,
    /// The operator, if there is nobody yet. No setting: `dartcloud dev` makes one.
    #[arg(skip)]
    pub founder: Option<Founder>,
}

/// The first user, whose account is made before the public listener takes anybody: else whoever is quick becomes the
/// operator.
#[derive(Clone)]
pub struct Founder {
    /// The e-mail address.
    pub email: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Founder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Founder").field("email", &self.email).finish_non_exhaustive()
    }
}

impl Settings {
    /// Where the public listener will be.
    #[must_use]
    pub fn listen_addr(&self) -> SocketAddr {
        SocketAddr::new(self.listen.bind_addr, self.listen.port)
    }
}

/// The secret that tokens are signed with.
#[derive(Clone, clap::Args)]
pub struct JwtArgs {
    /// The secret that tokens are signed with, at least 32 bytes.
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,
    /// A file that holds `JWT_SECRET`.
    #[arg(long, env = "JWT_SECRET_FILE")]
    pub jwt_secret_file: Option<PathBuf>,
}

impl std::fmt::Debug for JwtArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtArgs").field("jwt_secret_file", &self.jwt_secret_file).finish_non_exhaustive()
    }
}

impl JwtArgs {
    /// The secret.
    ///
    /// # Errors
    /// There is none, its file cannot be read, or it is too short.
    pub(crate) fn secret(&self) -> Result<String, StartError> {
        let found = secret(self.jwt_secret.as_deref(), "JWT_SECRET", self.jwt_secret_file.as_deref());
        match found.map_err(StartError::Setting)? {
            Some(secret) if secret.len() >= MIN_SECRET_BYTES => Ok(secret),
            found => {
                let what = if found.is_some() { "is shorter than 32 bytes" } else { "is not set" };
                let fix = "make one with `openssl rand -base64 64 | tr -d '\\n'` and set it, or put it in the file that \
                           JWT_SECRET_FILE names";
                Err(StartError::Setting(format!("JWT_SECRET {what}: {fix}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Option<&str>, expected: Result<&str, &str>) {
        let args = JwtArgs { jwt_secret: value.map(str::to_owned), jwt_secret_file: None };
        match (args.secret(), expected) {
            (Ok(secret), Ok(expected)) => assert_eq!(secret, expected),
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part) && error.exit_code() == 64, "{error}");
            }
            (got, expected) => panic!("{value:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_secret_is_required() {
        check(Some("0123456789abcdef0123456789abcdef"), Ok("0123456789abcdef0123456789abcdef"));
        check(Some("short"), Err("shorter than 32 bytes"));
        check(Some(""), Err("is not set"));
        check(None, Err("openssl rand"));
    }
}
