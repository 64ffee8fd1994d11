//! The control API's settings.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// How much longer an access token may be taken than it was to live, in seconds: what clocks may be apart, and the leeway
/// for that, with room to spare.
const CLOCKS_APART_SECONDS: u32 = 60;

/// What the control API may do, and how much of it at once.
#[derive(Clone, Debug, clap::Args)]
pub struct ControlArgs {
    /// Whether anyone may register. The first user always may, and becomes the operator, who may register others
    /// by the same call with his token.
    #[arg(long, env = "REGISTRATION", value_enum, default_value = "open")]
    pub registration: Registration,
    /// How long an access token is valid, in seconds.
    #[arg(long, env = "ACCESS_TOKEN_SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(60..=86_400))]
    pub access_token_seconds: u32,
    /// How long a refresh token is valid, in days.
    #[arg(long, env = "REFRESH_TOKEN_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=365))]
    pub refresh_token_days: u32,
    /// Threads that hash passwords; each needs 19 MiB and keeps a core busy for about 35 ms a login.
    #[arg(long, env = "PASSWORD_THREADS", default_value = "2")]
    pub password_threads: NonZeroU32,
    /// Deploys that are checked and built at once; more wait.
    #[arg(long, env = "DEPLOY_CONCURRENCY", default_value = "4")]
    pub deploy_concurrency: NonZeroU32,
    /// How long one deploy may take from its complete upload to its answer, in seconds: at most a quarter of an hour.
    #[arg(long, env = "DEPLOY_TIMEOUT_SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(10..=900))]
    pub deploy_timeout_seconds: u32,
    /// How long records of calls, lines of build logs and replaced versions are kept, in days.
    #[arg(long, env = "RECORD_RETENTION_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub record_retention_days: u32,
    /// How the platform is reached from outside, such as `https://functions.example.com`; it begins the `url` of
    /// every function. Default: what the request came by, `http://` as a rule, and its `Host`.
    #[arg(long, env = "PUBLIC_URL")]
    pub public_url: Option<PublicUrl>,
}

/// Whether anyone may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Registration {
    /// Anyone may.
    Open,
    /// The first user may, who becomes the operator, and whom he registers.
    Closed,
}

impl ControlArgs {
    pub(crate) fn access_token_lifetime(&self) -> Duration {
        Duration::from_secs(self.access_token_seconds.into())
    }

    /// How long it has to be known that a session has ended, in seconds: until every access token of it has expired.
    pub(crate) fn ended_session_seconds(&self) -> u32 {
        self.access_token_seconds + CLOCKS_APART_SECONDS
    }

    pub(crate) fn refresh_token_lifetime(&self) -> chrono::Duration {
        chrono::Duration::days(self.refresh_token_days.into())
    }

    pub(crate) fn record_retention(&self) -> chrono::Duration {
        chrono::Duration::days(self.record_retention_days.into())
    }

    pub(crate) fn deploy_timeout(&self) -> Duration {
        Duration::from_secs(self.deploy_timeout_seconds.into())
    }
}

/// An `http` or `https` URL without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

/// `PUBLIC_URL` cannot be the beginning of a URL.
#[derive(Debug, thiserror::Error)]
#[error("use a URL such as https://functions.example.com")]
pub struct InvalidPublicUrl;

impl PublicUrl {
    /// The URL as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicUrl {
    type Err = InvalidPublicUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPublicUrl> {
        let uri: http::Uri = text.parse().map_err(|_| InvalidPublicUrl)?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !web || uri.authority().is_none() || uri.query().is_some() {
            return Err(InvalidPublicUrl);
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let url = text.parse::<PublicUrl>().ok();
        assert_eq!(url.as_ref().map(PublicUrl::as_str), expected, "{text:?}");
    }

    #[test]
    fn public_urls() {
        check("https://a.example", Some("https://a.example"));
        check("http://a.example:8080/", Some("http://a.example:8080"));
        check("https://a.example/base/", Some("https://a.example/base"));
        check("a.example", None);
        check("ftp://a.example", None);
        check("https://a.example/?q", None);
        check("", None);
    }
}
