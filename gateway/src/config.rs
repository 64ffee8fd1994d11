//! The gateway's settings, each beside the code that uses it; here they are put together.

use std::net::SocketAddr;
use std::path::PathBuf;

use common::manifest::Ceilings;
use common::settings::secret;
use store::artifacts::ArtifactArgs;

use crate::control::config::ControlArgs;
use crate::edge::limits::LimitArgs;
use crate::edge::listener::ListenArgs;
use crate::edge::shared_limits::RedisArgs;
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
    /// Where rates and concurrency are counted for several gateways.
    #[command(flatten)]
    pub redis: RedisArgs,
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
    /// While the secret is changed: another one whose tokens are taken, too.
    #[arg(long, env = "JWT_SECRET_PREVIOUS", hide_env_values = true)]
    pub jwt_secret_previous: Option<String>,
    /// A file that holds `JWT_SECRET_PREVIOUS`.
    #[arg(long, env = "JWT_SECRET_PREVIOUS_FILE")]
    pub jwt_secret_previous_file: Option<PathBuf>,
}

/// The secrets themselves.
#[derive(Clone)]
pub(crate) struct Secrets {
    /// What is new is signed and sealed with it.
    pub(crate) current: String,
    /// What was signed and sealed with it is good, too.
    pub(crate) previous: Option<String>,
}

impl std::fmt::Debug for JwtArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtArgs").field("jwt_secret_file", &self.jwt_secret_file).finish_non_exhaustive()
    }
}

impl JwtArgs {
    /// The secrets.
    ///
    /// # Errors
    /// There is none, a file cannot be read, or one is too short.
    pub(crate) fn secrets(&self) -> Result<Secrets, StartError> {
        let given = |value: &Option<String>, name: &str, file: &Option<PathBuf>| {
            let file = file.as_deref().filter(|path| !path.as_os_str().is_empty());
            secret(value.as_deref(), name, file).map_err(StartError::Setting)
        };
        let current = given(&self.jwt_secret, "JWT_SECRET", &self.jwt_secret_file)?;
        let previous = given(&self.jwt_secret_previous, "JWT_SECRET_PREVIOUS", &self.jwt_secret_previous_file)?;
        if previous.as_ref().is_some_and(|secret| secret.len() < MIN_SECRET_BYTES) {
            let sentence = "JWT_SECRET_PREVIOUS is shorter than 32 bytes, as no JWT_SECRET is: set the one of before";
            return Err(StartError::Setting(sentence.to_owned()));
        }
        match current {
            Some(current) if current.len() >= MIN_SECRET_BYTES => Ok(Secrets { current, previous }),
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

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn check(current: Option<&str>, previous: Option<&str>, expected: Result<Option<&str>, &str>) {
        let given = |text: Option<&str>| text.map(str::to_owned);
        let args = JwtArgs {
            jwt_secret: given(current),
            jwt_secret_file: None,
            jwt_secret_previous: given(previous),
            jwt_secret_previous_file: None,
        };
        match (args.secrets(), expected) {
            (Ok(secrets), Ok(previous)) => {
                assert_eq!((secrets.current.as_str(), secrets.previous.as_deref()), (GOOD, previous));
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part) && error.exit_code() == 64, "{error}");
            }
            (got, expected) => panic!("{current:?}: {:?}, expected {expected:?}", got.map(drop)),
        }
    }

    #[test]
    fn a_secret_is_required() {
        check(Some(GOOD), None, Ok(None));
        check(Some("short"), None, Err("shorter than 32 bytes"));
        check(Some(""), None, Err("is not set"));
        check(None, None, Err("openssl rand"));
        check(None, Some(GOOD), Err("is not set"));
        check(Some(GOOD), Some(""), Ok(None));
        check(
            Some(GOOD),
            Some("the one that was there before, of 32"),
            Ok(Some("the one that was there before, of 32")),
        );
        check(Some(GOOD), Some("short"), Err("JWT_SECRET_PREVIOUS is shorter"));
    }
}
