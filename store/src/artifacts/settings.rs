//! Where artifacts are kept, and who we are to an S3 service.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use common::settings::secret;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::ArtifactsError;

/// How long a connection to the service may take to come up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the service may be silent within an answer.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// How long one request may take, a build's download included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(600);
/// How often a request is tried again that failed for the service's fault, and for how long.
const RETRIES: usize = 4;
const RETRY_DEADLINE: Duration = Duration::from_secs(20);
/// The pauses between: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where archives and builds are kept. The variables of S3 are those that every tool of it reads.
#[derive(Clone, Default, clap::Args)]
#[group(id = "artifacts")]
pub struct ArtifactArgs {
    /// Where archives and builds are kept: `s3://BUCKET/PREFIX`, or `file:///PATH`; default: `FUNCTIONS_DIR`. Several
    /// gateways need S3.
    #[arg(long, env = "ARTIFACTS_URL")]
    pub artifacts_url: Option<String>,
    /// S3: the access key's id; without one, the role of the machine is used.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    pub aws_access_key_id: Option<String>,
    /// S3: the access key's secret.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub aws_secret_access_key: Option<String>,
    /// S3: a file that holds `AWS_SECRET_ACCESS_KEY`.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY_FILE")]
    pub aws_secret_access_key_file: Option<PathBuf>,
    /// S3: the session token of temporary keys.
    #[arg(long, env = "AWS_SESSION_TOKEN", hide_env_values = true)]
    pub aws_session_token: Option<String>,
    /// S3: the bucket's region.
    #[arg(long, env = "AWS_REGION", default_value = DEFAULT_REGION)]
    pub aws_region: String,
    /// S3: the service's address, where it is not Amazon's.
    #[arg(long, env = "AWS_ENDPOINT_URL")]
    pub aws_endpoint_url: Option<String>,
    /// S3: whether that address may be without TLS.
    #[arg(long, env = "AWS_ALLOW_HTTP", default_value_t = false, action = clap::ArgAction::Set)]
    pub aws_allow_http: bool,
}

const DEFAULT_REGION: &str = "us-east-1";

impl fmt::Debug for ArtifactArgs {
    /// All but the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArtifactArgs")
            .field("artifacts_url", &self.artifacts_url)
            .field("aws_region", &self.aws_region)
            .field("aws_endpoint_url", &self.aws_endpoint_url)
            .field("aws_allow_http", &self.aws_allow_http)
            .finish_non_exhaustive()
    }
}

/// What the settings name.
#[derive(Debug)]
pub(super) enum Location {
    /// `FUNCTIONS_DIR`.
    Default,
    /// Another directory.
    Directory(PathBuf),
    /// A bucket, and what its names begin with.
    Bucket { client: Box<AmazonS3>, prefix: Path },
}

impl ArtifactArgs {
    /// # Errors
    /// [`ArtifactsError::Settings`]: the URL is of no kind that is known, or a key is missing.
    pub(super) fn location(&self) -> Result<Location, ArtifactsError> {
        // Compose files pass what is not set as an empty text.
        let Some(url) = given(self.artifacts_url.as_deref()) else { return Ok(Location::Default) };
        if let Some(path) = url.strip_prefix("file://") {
            return match path.starts_with('/') {
                true => Ok(Location::Directory(path.into())),
                false => Err(refused("it names no absolute path: write file:///path")),
            };
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(refused("it is neither s3://bucket/prefix nor file:///path"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['?', '#', '@', ':']) {
            return Err(refused(
                "it names no bucket: write s3://bucket/prefix, and the keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ));
        }
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| refused(&error.to_string()))?;
        Ok(Location::Bucket { client: Box::new(self.client(bucket)?), prefix })
    }

    fn client(&self, bucket: &str) -> Result<AmazonS3, ArtifactsError> {
        let options = ClientOptions::new()
            .with_connect_timeout(CONNECT_DEADLINE)
            .with_read_timeout(SILENCE_DEADLINE)
            .with_timeout(REQUEST_DEADLINE)
            .with_allow_http(self.aws_allow_http);
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2. },
            max_retries: RETRIES,
            retry_timeout: RETRY_DEADLINE,
        };
        let region = given(Some(&self.aws_region)).unwrap_or(DEFAULT_REGION);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = given(self.aws_endpoint_url.as_deref()) {
            if endpoint.starts_with("http://") && !self.aws_allow_http {
                return Err(ArtifactsError::Settings(
                    "AWS_ENDPOINT_URL is without TLS: make it https, or set AWS_ALLOW_HTTP=true on a network that you trust"
                        .into(),
                ));
            }
            builder = builder.with_endpoint(endpoint);
        }
        let file = self.aws_secret_access_key_file.as_deref().filter(|path| !path.as_os_str().is_empty());
        let key = secret(self.aws_secret_access_key.as_deref(), "AWS_SECRET_ACCESS_KEY", file);
        match (given(self.aws_access_key_id.as_deref()), key.map_err(ArtifactsError::Settings)?) {
            (Some(id), Some(key)) => builder = builder.with_access_key_id(id).with_secret_access_key(key),
            (None, None) => {}
            _ => {
                let sentence = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: set both, or neither";
                return Err(ArtifactsError::Settings(sentence.into()));
            }
        }
        if let Some(token) = given(self.aws_session_token.as_deref()) {
            builder = builder.with_token(token);
        }
        builder.build().map_err(|error| refused(&error.to_string()))
    }
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn refused(why: &str) -> ArtifactsError {
    ArtifactsError::Settings(format!("ARTIFACTS_URL cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, change: impl FnOnce(&mut ArtifactArgs), expected: Result<&str, &str>) {
        let mut args = ArtifactArgs { artifacts_url: Some(url.to_owned()), ..ArtifactArgs::default() };
        change(&mut args);
        match (args.location(), expected) {
            (Ok(location), Ok(expected)) => {
                let got = match location {
                    Location::Default => "default".to_owned(),
                    Location::Directory(path) => path.display().to_string(),
                    Location::Bucket { prefix, .. } => format!("bucket, {prefix}"),
                };
                assert_eq!(got, expected);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{url}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_url_says_where() {
        check("", |_| {}, Ok("default"));
        check("file:///srv/artifacts", |_| {}, Ok("/srv/artifacts"));
        check("file://artifacts", |_| {}, Err("write file:///path"));
        check("s3://bucket", |_| {}, Ok("bucket, "));
        check("s3://bucket/a/b/", |_| {}, Ok("bucket, a/b"));
        check("s3:///prefix", |_| {}, Err("names no bucket"));
        check("s3://id:key@bucket/", |_| {}, Err("AWS_ACCESS_KEY_ID"));
        check("s3://bucket/a//b", |_| {}, Err("ARTIFACTS_URL cannot be used"));
        check("gs://bucket", |_| {}, Err("neither s3://"));
    }

    #[test]
    fn keys_belong_together_and_stay_hidden() {
        let some = |text: &str| Some(text.to_owned());
        let keys = |args: &mut ArtifactArgs| {
            args.aws_access_key_id = some("id");
            args.aws_secret_access_key = some("s3cret");
        };
        check("s3://b", keys, Ok("bucket, "));
        check("s3://b", |args| args.aws_access_key_id = some("id"), Err("set both, or neither"));
        check("s3://b", |args| args.aws_secret_access_key_file = Some("/nowhere".into()), Err("_FILE"));
        let plain = |args: &mut ArtifactArgs| args.aws_endpoint_url = some("http://127.0.0.1:1");
        check("s3://b", plain, Err("AWS_ALLOW_HTTP=true"));
        let mut args = ArtifactArgs::default();
        keys(&mut args);
        assert!(!format!("{args:?}").contains("s3cret"));
    }
}
