//! A user of the platform: an account and the calls that it makes, as anyone would make them over HTTP.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::platform::until;

/// A user with a token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) handle: String,
    pub(crate) token: String,
}

/// A status and a JSON body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) headers: reqwest::header::HeaderMap,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Result<Self> {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await?;
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        Ok(Self { status, body, headers })
    }

    /// The answer, if it has this status.
    pub(crate) fn expect(self, status: u16) -> Result<Value> {
        ensure!(self.status == status, "expected {status}, got {self:?}");
        Ok(self.body)
    }

    /// Checks a public error: its status, its word, and that it says something.
    pub(crate) fn expect_error(self, status: u16, code: &str) -> Result<Value> {
        let sentence = self.body["error"].as_str().unwrap_or_default();
        ensure!(
            self.status == status
                && self.body["code"] == code
                && !sentence.is_empty()
                && self.body["request_id"].is_string(),
            "expected {status} {code}, got {self:?}"
        );
        Ok(self.body)
    }
}

impl Client {
    /// Registers a fresh user and logs in.
    pub(crate) async fn register(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(180)).build()?;
        Self::register_by(http, url).await
    }

    /// The same by this engine.
    pub(crate) async fn register_by(http: reqwest::Client, url: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let credentials = json!({"email": format!("user{number}@example.com"), "password": "correct horse"});
        let mut client = Self { http, url: url.into(), handle: String::new(), token: String::new() };
        let registered = client.post("/api/auth/register", &credentials).await?.expect(201)?;
        client.handle = registered["handle"].as_str().context("no handle")?.into();
        let tokens = client.post("/api/auth/login", &credentials).await?.expect(200)?;
        client.token = tokens["accessToken"].as_str().context("no accessToken")?.into();
        Ok(client)
    }

    /// The same client with another token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method of HTTP");
        let request = self.http.request(method, format!("{}{path}", self.url));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        Answer::of(self.request("GET", path).send().await?).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        Answer::of(self.request("POST", path).json(body).send().await?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Answer> {
        Answer::of(self.request("DELETE", path).send().await?).await
    }

    /// Uploads an archive.
    pub(crate) async fn deploy(&self, name: &str, archive: Vec<u8>) -> Result<Answer> {
        let archive = Part::bytes(archive).file_name("function.tar.gz");
        self.deploy_form(Form::new().text("name", name.to_owned()).part("archive", archive)).await
    }

    pub(crate) async fn deploy_form(&self, form: Form) -> Result<Answer> {
        Answer::of(self.request("POST", "/api/functions/deploy").multipart(form).send().await?).await
    }

    /// Invokes by the envelope.
    pub(crate) async fn invoke(&self, name: &str, body: Value) -> Result<Answer> {
        self.post(&format!("/api/functions/{name}/invoke"), &json!({"body": body})).await
    }

    /// The records of a function, once there are `count` of them.
    pub(crate) async fn records(&self, name: &str, count: usize) -> Result<Vec<Value>> {
        until(&format!("{count} records of {name}"), Duration::from_secs(30), async || {
            let all = self.all_records(name).await?;
            Ok((all.len() >= count).then_some(all))
        })
        .await
    }

    async fn all_records(&self, name: &str) -> Result<Vec<Value>> {
        let mut all: Vec<Value> = Vec::new();
        let mut before = String::new();
        loop {
            let page = self.get(&format!("/api/functions/{name}/logs?limit=1000{before}")).await?.expect(200)?;
            all.extend(page["logs"].as_array().context("no logs")?.iter().cloned());
            match page["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return Ok(all),
            }
        }
    }
}
