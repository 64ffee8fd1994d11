//! The server's HTTP API: which server, as whom, and how its answers and errors are read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::credentials::{self, Credentials};
use crate::failure;

/// Until a server is reached.
const CONNECT: Duration = Duration::from_secs(10);
/// A call of the control API.
const CALL: Duration = Duration::from_secs(60);
/// Largest answer that is read, in bytes: a page of logs is the largest there is.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Which server, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server's base URL; default: the one that `login` or `dev` remembers.
    #[arg(long, env = "DARTCLOUD_URL", value_parser = base_url)]
    pub(crate) url: Option<Url>,
    /// An access token; default: the one that `login` or `dev` remembers.
    #[arg(long, env = "DARTCLOUD_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A file of certificate authorities, in PEM, that are believed beside the machine's own; for a server whose
    /// certificate is of your own making.
    #[arg(long, env = "DARTCLOUD_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Where `dartcloud dev` keeps its data.
    #[arg(long, env = "DATA_DIR", hide = true, default_value_os_t = common::settings::default_data_dir())]
    pub(crate) data_dir: PathBuf,
}

/// A server's base URL, with a slash at its end.
pub(crate) fn base_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if let Some(url) = &mut url {
        // `join` replaces what follows the last slash.
        url.set_path(&format!("{}/", url.path().trim_end_matches('/')));
        url.set_query(None);
    }
    url.ok_or_else(|| "a server is named as http://host:port or https://host".into())
}

/// The server said no.
#[derive(Debug, thiserror::Error)]
#[error("{error} ({code})")]
pub(crate) struct Refusal {
    /// One sentence.
    pub(crate) error: String,
    /// The code's word.
    pub(crate) code: String,
    /// The request's id, by which the server's log and `why` know it.
    pub(crate) request_id: Option<String>,
    /// The build's log, if a build failed.
    pub(crate) log: Option<String>,
    /// The answer as it came.
    pub(crate) raw: String,
}

impl Refusal {
    /// Reads an error's body.
    pub(crate) fn read(status: Option<StatusCode>, raw: &str) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: String,
            code: String,
            request_id: Option<String>,
            log: Option<String>,
        }
        match serde_json::from_str::<Body>(raw) {
            Ok(Body { error, code, request_id, log }) => Self { error, code, request_id, log, raw: raw.to_owned() },
            Err(_) => Self {
                error: "the server's answer is not Dart Cloud's: check the URL".into(),
                code: status.map_or_else(|| "unknown".into(), |status| status.as_u16().to_string()),
                request_id: None,
                log: None,
                raw: raw.to_owned(),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tokens {
    access_token: String,
    refresh_token: Option<String>,
}

/// A server, and who we are there.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
    /// The file that the token is from; it is renewed there.
    file: Option<PathBuf>,
}

impl Client {
    /// Finds server and credentials: what the command line and the environment say, else what `login` wrote, else
    /// what `dartcloud dev` wrote.
    ///
    /// # Errors
    /// There are none, or those that there are belong to another server than the one that is asked for.
    pub(crate) fn new(server: Server) -> anyhow::Result<Self> {
        let ca = server.ca_file.as_deref();
        if let (Some(base), Some(token)) = (&server.url, &server.token) {
            return Ok(Self { http: http(base, ca)?, base: base.clone(), token: token.clone(), file: None });
        }
        let files = [credentials::user_file(), Some(server.data_dir.join(credentials::FILE))];
        let mut known = Vec::new();
        for path in files.into_iter().flatten() {
            let Some(stored) = credentials::load(&path)? else { continue };
            let base = stored_url(&stored, &path)?;
            // A token goes to the server that gave it and to no other.
            if server.url.as_ref().is_none_or(|url| *url == base) {
                let (token, file) = match server.token {
                    Some(token) => (token, None),
                    None => (stored.access_token.unwrap_or_default(), Some(path)),
                };
                return Ok(Self { http: http(&base, ca)?, base, token, file });
            }
            known.push(base.to_string());
        }
        Err(failure::wrong(match (&server.url, known.as_slice()) {
            (Some(url), _) => format!("you are not signed in to {url}: run `dartcloud login --url {url}`"),
            (None, _) => {
                "you are not signed in: run `dartcloud login --url http://host:port`, or `dartcloud dev` for a \
                          server on this machine"
                    .into()
            }
        }))
    }

    /// The server's base URL; ends with a slash.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// A URL of an answer, which may be relative to the server.
    pub(crate) fn absolute(&self, url: &str) -> String {
        self.base.join(url).map_or_else(|_| url.to_owned(), String::from)
    }

    /// The access token as it is now.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Sends what `finish` makes of a request for `path`; an expired token is renewed once, and `finish` called
    /// again. The answer's status is a success.
    ///
    /// # Errors
    /// The server is out of reach, or it refused: [`Refusal`].
    pub(crate) async fn send<F>(&mut self, method: Method, path: &str, mut finish: F) -> anyhow::Result<Response>
    where
        F: AsyncFnMut(RequestBuilder) -> anyhow::Result<RequestBuilder>,
    {
        let url = self.base.join(path).context("the request's path is not valid")?;
        let mut renewed = false;
        loop {
            let request = self.http.request(method.clone(), url.clone()).timeout(CALL).bearer_auth(&self.token);
            let response = finish(request).await?.send().await.map_err(|error| unreachable(&self.base, error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let refusal = Refusal::read(Some(status), &text(response).await?);
            if renewed || refusal.code != "unauthorized" || self.file.is_none() {
                return Err(explained(refusal));
            }
            self.renew().await?;
            renewed = true;
        }
    }

    /// Sends a request without a body and returns the answer's text.
    pub(crate) async fn call(&mut self, method: Method, path: &str) -> anyhow::Result<String> {
        text(self.send(method, path, async |request| Ok(request)).await?).await
    }

    /// Gets a new access token by the refresh token, else by the password, and stores it.
    async fn renew(&mut self) -> anyhow::Result<()> {
        let Some(path) = self.file.clone() else { return Ok(()) };
        let _held = credentials::lock(&path).await?;
        let mut stored = credentials::load(&path)?.ok_or_else(sign_in)?;
        if stored_url(&stored, &path)? != self.base {
            return Err(sign_in());
        }
        if let Some(token) = stored.access_token.as_ref().filter(|token| **token != self.token) {
            // Another command has just renewed it.
            self.token.clone_from(token);
            return Ok(());
        }
        let by_refresh = match &stored.refresh_token {
            Some(token) => tokens(&self.http, &self.base, "api/auth/refresh", &json!({"refreshToken": token})).await,
            None => Err(sign_in()),
        };
        let tokens = match (by_refresh, &stored.password) {
            (Ok(tokens), _) => tokens,
            (Err(error), _) if !error.is::<Refusal>() && stored.refresh_token.is_some() => return Err(error),
            (Err(_), Some(password)) => login(&self.http, &self.base, &stored.email, password).await?,
            (Err(_), None) => return Err(sign_in()),
        };
        self.token.clone_from(&tokens.access_token);
        stored.access_token = Some(tokens.access_token);
        stored.refresh_token = tokens.refresh_token;
        credentials::save(&path, &stored)
    }
}

/// Makes an account.
pub(crate) async fn register(base: &Url, ca: Option<&Path>, email: &str, password: &str) -> anyhow::Result<()> {
    let account = json!({"email": email, "password": password});
    posted(&http(base, ca)?, base, "api/auth/register", &account).await.map(drop)
}

/// Signs in and returns what `login` stores; the password is not in it.
pub(crate) async fn sign_in_as(
    base: &Url,
    ca: Option<&Path>,
    email: &str,
    password: &str,
) -> anyhow::Result<Credentials> {
    let Tokens { access_token, refresh_token } = login(&http(base, ca)?, base, email, password).await?;
    Ok(Credentials {
        url: base.to_string(),
        email: email.to_owned(),
        password: None,
        access_token: Some(access_token),
        refresh_token,
    })
}

/// The text of an answer.
pub(crate) async fn text(mut response: Response) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.context("the server's answer broke off")? {
        anyhow::ensure!(bytes.len() + chunk.len() <= MAX_ANSWER_BYTES, "the server's answer is too large");
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).context("the server's answer is not text")
}

/// The answer behind `text`.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the server's answer is not Dart Cloud's: check the URL")
}

fn stored_url(stored: &Credentials, path: &std::path::Path) -> anyhow::Result<Url> {
    base_url(&stored.url)
        .map_err(|_| failure::wrong(format!("{} names no server: run `dartcloud login`", path.display())))
}

fn sign_in() -> anyhow::Error {
    failure::wrong("you are no longer signed in: run `dartcloud login`")
}

fn explained(refusal: Refusal) -> anyhow::Error {
    match refusal.code.as_str() {
        "unauthorized" => anyhow::Error::new(refusal)
            .context("the server does not take the token: run `dartcloud login`, or pass a valid --token"),
        _ => refusal.into(),
    }
}

/// The client's engine. What is on this machine is not looked for behind a proxy.
fn http(base: &Url, ca: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().connect_timeout(CONNECT).user_agent(AGENT);
    if let Some(path) = ca {
        builder = builder.tls_certs_merge(authorities(path)?);
    }
    let local = match base.host_str() {
        Some(host) => {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    };
    if local {
        builder = builder.no_proxy();
    }
    builder.build().context("cannot set up HTTP")
}

/// The certificates of a file that the user named.
fn authorities(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let name = || format!("{}: let DARTCLOUD_CA_FILE or --ca-file name a file of certificates in PEM", path.display());
    let text = std::fs::read(path).map_err(|error| failure::wrong(format!("{}: {error}", name())))?;
    match reqwest::Certificate::from_pem_bundle(&text) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(failure::wrong(format!("no certificate is in {}", name()))),
    }
}

const AGENT: &str = concat!("dartcloud/", env!("CARGO_PKG_VERSION"));

async fn login(http: &reqwest::Client, base: &Url, email: &str, password: &str) -> anyhow::Result<Tokens> {
    tokens(http, base, "api/auth/login", &json!({"email": email, "password": password})).await
}

async fn tokens(http: &reqwest::Client, base: &Url, path: &str, body: &Value) -> anyhow::Result<Tokens> {
    parse(&posted(http, base, path, body).await?)
}

async fn posted(http: &reqwest::Client, base: &Url, path: &str, body: &Value) -> anyhow::Result<String> {
    let sent = http.post(base.join(path)?).timeout(CALL).json(body).send().await;
    let response = sent.map_err(|error| unreachable(base, error))?;
    let status = response.status();
    let text = text(response).await?;
    if !status.is_success() {
        return Err(Refusal::read(Some(status), &text).into());
    }
    Ok(text)
}

fn unreachable(base: &Url, error: reqwest::Error) -> anyhow::Error {
    let sentence = if says(&error, "CaUsedAsEndEntity") {
        format!(
            "the certificate of {base} is an authority's own, and no server's: make one with `-addext \
             basicConstraints=critical,CA:FALSE`"
        )
    } else if says(&error, "peer certificate") {
        format!("the certificate of {base} is not believed: name its authority with --ca-file or DARTCLOUD_CA_FILE")
    } else if error.is_timeout() {
        format!("{base} did not answer in time: try again, or look at the server's log")
    } else if error.is_connect() {
        format!("cannot reach {base}: start the server (`dartcloud dev`), or name another with --url")
    } else {
        format!("the connection to {base} failed: try again")
    };
    anyhow::Error::new(error.without_url()).context(sentence)
}

/// Whether a cause says this: of TLS, reqwest shows the words only.
fn says(error: &reqwest::Error, words: &str) -> bool {
    let error: &dyn std::error::Error = error;
    std::iter::successors(error.source(), |cause| cause.source()).any(|cause| cause.to_string().contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Option<&str>) {
        assert_eq!(base_url(url).ok().as_ref().map(Url::as_str), expected, "{url}");
    }

    #[test]
    fn base_urls() {
        check("http://127.0.0.1:8080", Some("http://127.0.0.1:8080/"));
        check("https://example.org/cloud", Some("https://example.org/cloud/"));
        check("https://example.org/cloud/?a=b", Some("https://example.org/cloud/"));
        check("ftp://example.org", None);
        check("127.0.0.1:8080", None);
    }

    #[test]
    fn a_token_goes_to_its_own_server_only() {
        let directory = tempfile::tempdir().unwrap();
        let stored = Credentials {
            url: "http://127.0.0.1:8080".into(),
            email: "a@example.org".into(),
            password: None,
            access_token: Some("token".into()),
            refresh_token: None,
        };
        credentials::save(&directory.path().join(credentials::FILE), &stored).unwrap();
        let client = |url: &str, token: Option<&str>| {
            Client::new(Server {
                url: Some(base_url(url).unwrap()),
                token: token.map(str::to_owned),
                ca_file: None,
                data_dir: directory.path().to_path_buf(),
            })
        };
        assert_eq!(client("http://127.0.0.1:8080/", None).unwrap().token, "token");
        assert_eq!(client("http://127.0.0.1:9090", Some("other")).unwrap().token, "other");
        let error = client("http://127.0.0.1:9090", None).err().unwrap();
        assert!(error.to_string().contains("dartcloud login --url http://127.0.0.1:9090/"), "{error}");
    }

    #[test]
    fn refusals() {
        let refusal = Refusal::read(None, r#"{"error":"No.","code":"not_found","request_id":"r"}"#);
        assert_eq!(refusal.to_string(), "No. (not_found)");
        assert_eq!(refusal.request_id.as_deref(), Some("r"));
        let foreign = Refusal::read(Some(StatusCode::BAD_GATEWAY), "<html>");
        assert!(foreign.to_string().ends_with("check the URL (502)"));
    }
}
