//! Requests read at the door: a JSON object's fields, a query's parameters and a path's key become values that cannot
//! be wrong, or a sentence that names the one that is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::error::Code;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::error::Failure;

/// Largest JSON body, in bytes.
const MAX_JSON_BYTES: usize = 64 * 1024;
/// How long a JSON body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// How long a control call may take until its answer begins; deploys have their own.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// The layer of calls that answer at once.
pub(crate) async fn within_deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(CALL_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let sentence = format!("no answer within {} seconds: try again", CALL_DEADLINE.as_secs());
            Failure::new(Code::StoreUnavailable, sentence).into_response()
        }
    }
}

/// A JSON object. Fields that nobody asks for are ignored.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// The text called `name`.
    pub(crate) fn text(&mut self, name: &str) -> Result<String, Failure> {
        match self.0.remove(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Failure::new(Code::Invalid, format!("the field `{name}` must be a string"))),
            None => Err(Failure::new(Code::Invalid, format!("the field `{name}` is missing"))),
        }
    }
}

impl Fields {
    /// The object called `name`, of texts, or `null` in place of one.
    pub(crate) fn texts(&mut self, name: &str) -> Result<BTreeMap<String, Option<String>>, Failure> {
        let Some(value) = self.0.remove(name) else {
            return Err(Failure::new(Code::Invalid, format!("the field `{name}` is missing")));
        };
        let sentence = format!("the field `{name}` must be an object of strings, or `null` for what is to go");
        serde_json::from_value(value).map_err(|_| Failure::new(Code::Invalid, sentence))
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        if !is_json(request.headers()) {
            let sentence = "send JSON, with the header `Content-Type: application/json`";
            return Err(Failure::new(Code::UnsupportedMediaType, sentence));
        }
        let bytes = read(request.into_body()).await?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Failure::new(Code::Invalid, "the body must be a JSON object")),
            Err(error) => Err(Failure::new(Code::BadRequest, format!("the body is not JSON: {error}"))),
        }
    }
}

async fn read(body: Body) -> Result<axum::body::Bytes, Failure> {
    let collected = tokio::time::timeout(BODY_DEADLINE, Limited::new(body, MAX_JSON_BYTES).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Failure::new(Code::TooLarge, format!("the body is over {} KiB", MAX_JSON_BYTES / 1024)))
        }
        Ok(Err(error)) => Err(Failure::caused(Code::BadRequest, "the body broke off", error)),
        Err(_) => {
            let sentence = format!("the body did not arrive within {} seconds", BODY_DEADLINE.as_secs());
            Err(Failure::new(Code::RequestTimeout, sentence))
        }
    }
}

fn is_json(headers: &http::HeaderMap) -> bool {
    let Some(kind) = media_type(headers) else { return false };
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The request's content type in lower case, without its parameters.
pub(crate) fn media_type(headers: &http::HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// A query's parameters; the last one of a repeated name counts.
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Refuses names that are not in `known`, so that a misspelt filter is not taken for none.
    pub(crate) fn only(self, known: &[&str]) -> Result<Self, Failure> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(self),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let sentence = format!("the parameter `{name}` is unknown: use {}", known.join(", "));
                Err(Failure::new(Code::Invalid, sentence))
            }
        }
    }

    /// The parameter `name`, if it is there; `shape` says what it must be.
    pub(crate) fn get<T: FromStr>(&self, name: &str, shape: &str) -> Result<Option<T>, Failure> {
        self.choose(name, shape, |text| text.parse().ok())
    }

    /// The parameter `name` as `read` understands it.
    pub(crate) fn choose<T>(
        &self,
        name: &str,
        shape: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some((_, text)) = self.0.iter().rev().find(|(given, _)| given == name) else { return Ok(None) };
        match read(text) {
            Some(value) => Ok(Some(value)),
            None => Err(Failure::new(Code::Invalid, format!("the parameter `{name}` must be {shape}"))),
        }
    }

    /// `limit`, from 1 to 1000.
    pub(crate) fn limit(&self) -> Result<u32, Failure> {
        let valid = |text: &str| text.parse().ok().filter(|limit| (1..=1000).contains(limit));
        Ok(self.choose("limit", "a number from 1 to 1000", valid)?.unwrap_or(DEFAULT_LIMIT))
    }
}

/// Entries in a list whose request does not say how many.
const DEFAULT_LIMIT: u32 = 100;

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(error) => Err(Failure::caused(Code::Invalid, "the query string is not valid", error)),
        }
    }
}

/// The `{id}` of a path: a function's id or name.
pub(crate) struct Key(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Ok(parameters) = RawPathParams::from_request_parts(parts, state).await else {
            return Err(Failure::not_found("the function"));
        };
        // The route of deploys has no parameter: there a function is meant that is called so.
        let key = parameters.iter().next().map_or("deploy", |(_, value)| value);
        Ok(Self(key.to_owned()))
    }
}

/// Where the client reached us: `http://` and the authority that it named.
pub(crate) struct Origin(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let named = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = named.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str));
        // By the gate, which knows what the client spoke.
        let proto = parts.headers.get("x-forwarded-proto").and_then(|proto| proto.to_str().ok());
        Ok(Self(format!("{}://{}", proto.unwrap_or("http"), authority.unwrap_or("localhost"))))
    }
}
