//! The secrets that `dartcloud dev` makes once: the key that signs tokens, and the operator's account.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use common::base64;
use rand::Rng as _;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::credentials::{self, Credentials};

/// The account that the first start registers, and so the operator's.
const EMAIL: &str = "operator@localhost";

/// How long an answer of our own gateway may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Uses the secret that was set, else the one that an earlier start made, else a fresh one.
pub(super) fn ensure_jwt_secret(data_dir: &Path, gateway: &mut gateway::Settings) -> Result<()> {
    let jwt = &mut gateway.jwt;
    if jwt.jwt_secret_file.is_some() || jwt.jwt_secret.as_ref().is_some_and(|secret| !secret.is_empty()) {
        return Ok(());
    }
    let path = data_dir.join("jwt-secret");
    if !path.exists() {
        // tempfile creates with mode 0600, and the name appears only when the text is there.
        let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
        file.write_all(random_text().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    jwt.jwt_secret_file = Some(path);
    Ok(())
}

/// Registers the operator at the first start, and refreshes the tokens that the command line finds at every start.
/// Returns his e-mail and where his password lies.
pub(super) async fn ensure_operator(url: &str, data_dir: &Path) -> Result<(String, PathBuf)> {
    let path = data_dir.join(credentials::FILE);
    let _lock = credentials::lock(&path).await?;
    let http = reqwest::Client::builder().timeout(ANSWER_DEADLINE).build()?;
    let mut operator = match credentials::load(&path)? {
        Some(operator) => operator,
        None => {
            let operator = Credentials {
                url: url.to_owned(),
                email: EMAIL.to_owned(),
                password: Some(random_text()),
                access_token: None,
                refresh_token: None,
            };
            // Written first: an account whose password nobody knows is worse than a file without an account.
            credentials::save(&path, &operator)?;
            operator
        }
    };
    let tokens = match log_in(&http, url, &operator).await? {
        Some(tokens) => tokens,
        None => {
            register(&http, url, &operator, &path).await?;
            log_in(&http, url, &operator).await?.context("the operator's account was made and cannot log in")?
        }
    };
    operator.url = url.to_owned();
    operator.access_token = Some(tokens.access_token);
    operator.refresh_token = Some(tokens.refresh_token);
    credentials::save(&path, &operator)?;
    Ok((operator.email, path))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tokens {
    access_token: String,
    refresh_token: String,
}

/// `None` when there is no such account, or its password is another.
async fn log_in(http: &reqwest::Client, url: &str, operator: &Credentials) -> Result<Option<Tokens>> {
    let account = json!({"email": operator.email, "password": operator.password});
    let response = http.post(format!("{url}/api/auth/login")).json(&account).send().await?;
    match response.status() {
        StatusCode::UNAUTHORIZED => Ok(None),
        StatusCode::OK => Ok(Some(response.json().await?)),
        status => bail!("the operator cannot log in: {status}: {}", response.text().await?),
    }
}

async fn register(http: &reqwest::Client, url: &str, operator: &Credentials, path: &Path) -> Result<()> {
    let account = json!({"email": operator.email, "password": operator.password});
    let response = http.post(format!("{url}/api/auth/register")).json(&account).send().await?;
    ensure!(
        response.status() != StatusCode::CONFLICT,
        "{} has an account, but its password is not the one in {}: put the right one there, or log in by another account",
        operator.email,
        path.display()
    );
    ensure!(response.status().is_success(), "the operator cannot be registered: {}", response.text().await?);
    Ok(())
}

/// 48 random bytes, as text.
fn random_text() -> String {
    let mut bytes = [0; 48];
    rand::rng().fill_bytes(&mut bytes);
    base64::encode(bytes)
}
