//! An HTTP request becomes the `/request.json` that the function reads, and the `request_info` that its record
//! keeps. Pure: bytes in, bytes or a public error out.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use common::base64;
use common::error::{Code, PublicError};
use common::ids::InvocationId;
use common::invocation::RequestInfo;
use common::protocol::OWN_HEADER_PREFIX;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST};
use http::{HeaderMap, HeaderValue, request};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Longest header or query value that a record keeps, in bytes.
const MAX_INFO_VALUE_BYTES: usize = 1024;
/// Most that a record keeps of all headers, or of the whole query, in bytes.
const MAX_INFO_MAP_BYTES: usize = 16 * 1024;
/// Longest path that a record keeps, in bytes.
const MAX_INFO_PATH_BYTES: usize = 2048;
/// Headers whose value is a credential.
pub(super) const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "x-api-key"];
/// Headers that speak of one connection and not of the request (RFC 9110, section 7.6.1).
pub(crate) const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the function gets, and what is kept of it.
#[derive(Debug)]
pub(crate) struct Handed {
    /// The contents of `/request.json`.
    pub(crate) json: Vec<u8>,
    /// The `request_info` of the record.
    pub(crate) info: RequestInfo,
}

/// What the function sees, before its body's form is settled.
struct Call {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    content_type: Option<String>,
}

impl Call {
    fn of(head: &request::Parts) -> Self {
        Self {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: parse_query(head.uri.query().unwrap_or_default()),
            headers: visible_headers(&head.headers),
            content_type: content_type(&head.headers),
        }
    }

    fn info(&self, now: DateTime<Utc>) -> RequestInfo {
        RequestInfo {
            headers: kept(&self.headers),
            query: kept(&self.query),
            method: storable(&self.method, MAX_INFO_VALUE_BYTES),
            path: storable(&self.path, MAX_INFO_PATH_BYTES),
            content_type: self.content_type.as_deref().map(|text| storable(text, MAX_INFO_VALUE_BYTES)),
            timestamp: now.to_rfc3339_opts(SecondsFormat::Millis, true),
        }
    }
}

/// What is kept of a request that is handed on as it is.
pub(super) fn info(head: &request::Parts, now: DateTime<Utc>) -> RequestInfo {
    Call::of(head).info(now)
}

#[derive(Serialize)]
struct RequestFile<'a> {
    body: &'a RawValue,
    query: &'a BTreeMap<String, String>,
    headers: &'a BTreeMap<String, String>,
    method: &'a str,
    path: &'a str,
    invocation_id: InvocationId,
    #[serde(rename = "isBase64Encoded", skip_serializing_if = "std::ops::Not::not")]
    is_base64_encoded: bool,
}

/// The client's request is the function's request.
///
/// # Errors
/// The content type says JSON and the body is none.
pub(crate) fn from_http(
    head: &request::Parts,
    body: &[u8],
    id: InvocationId,
    now: DateTime<Utc>,
) -> Result<Handed, PublicError> {
    let call = Call::of(head);
    let body = body_json(call.content_type.as_deref(), body)?;
    Ok(hand(&call, &body, id, now))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    query: Option<BTreeMap<String, Value>>,
    headers: Option<BTreeMap<String, Value>>,
    method: Option<String>,
    path: Option<String>,
}

/// The client's body is `{body, query, headers, method, path}`, and that is the function's request.
///
/// # Errors
/// The body is not JSON (400), or not of that shape (422).
pub(crate) fn from_envelope(
    head: &request::Parts,
    body: &[u8],
    id: InvocationId,
    now: DateTime<Utc>,
) -> Result<Handed, PublicError> {
    let Described { call, body } = described(head, body)?;
    let body = Body { json: body.map_or_else(|| RawValue::NULL.to_owned(), ToOwned::to_owned), is_base64: false };
    Ok(hand(&call, &body, id, now))
}

/// What an envelope describes.
struct Described<'a> {
    call: Call,
    body: Option<&'a RawValue>,
}

fn described<'a>(head: &request::Parts, body: &'a [u8]) -> Result<Described<'a>, PublicError> {
    let envelope = parse_envelope(body)?;
    let headers = scalars("headers", envelope.headers)?;
    let headers: BTreeMap<_, _> = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let call = Call {
        method: parse_method(envelope.method)?,
        path: parse_path(envelope.path)?,
        query: scalars("query", envelope.query)?,
        content_type: headers.get("content-type").cloned().or_else(|| content_type(&head.headers)),
        headers,
    };
    Ok(Described { call, body: envelope.body })
}

/// The client's body is `{body, query, headers, method, path}`, and the server gets the request that it describes.
///
/// # Errors
/// The body is not JSON (400), or describes no request (422).
pub(super) fn real_from_envelope(
    head: &request::Parts,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<(http::Request<Bytes>, RequestInfo), PublicError> {
    let Described { call, body } = described(head, body)?;
    let info = call.info(now);
    let body = body.map_or_else(Bytes::new, |json| Bytes::copy_from_slice(json.get().as_bytes()));
    let mut request = http::Request::builder().method(call.method.as_str()).uri(target(&call.path, &call.query));
    for (name, value) in &call.headers {
        let ours = HOP_BY_HOP.contains(&name.as_str()) || name.starts_with(OWN_HEADER_PREFIX) || name == "host";
        // What speaks of the connection is not the caller's, nor is the length of a body that we write.
        if !ours && name != CONTENT_LENGTH.as_str() {
            request = request.header(name, value);
        }
    }
    let described = request.header(HOST, "localhost").body(body);
    let mut request =
        described.map_err(|error| PublicError::new(Code::Invalid, format!("No such request: {error}")))?;
    if !request.body().is_empty() {
        request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    }
    Ok((request, info))
}

/// Path and query as they stand in a request's first line.
fn target(path: &str, query: &BTreeMap<String, String>) -> String {
    let mut target = utf8_percent_encode(path, IN_PATHS).to_string();
    for (number, (name, value)) in query.iter().enumerate() {
        target.push(if number == 0 && !path.contains('?') { '?' } else { '&' });
        target.extend(utf8_percent_encode(name, NON_ALPHANUMERIC));
        target.push('=');
        target.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
    }
    target
}

/// What a path may not hold as it is; an escape stays what it is.
const IN_PATHS: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}');

fn parse_envelope(body: &[u8]) -> Result<Envelope<'_>, PublicError> {
    if body.trim_ascii().is_empty() {
        return Ok(Envelope::default());
    }
    let not_json = |reason: String| PublicError::new(Code::BadRequest, format!("The body is not JSON: {reason}"));
    let text = std::str::from_utf8(body).map_err(|error| not_json(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            let fix = "send an object with `body`, `query`, `headers`, `method` and `path`, each optional";
            PublicError::new(Code::Invalid, format!("The body has the wrong shape ({error}): {fix}"))
        } else {
            not_json(error.to_string())
        }
    })
}

fn parse_method(method: Option<String>) -> Result<String, PublicError> {
    let Some(method) = method else { return Ok("POST".to_owned()) };
    if (1..=32).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Ok(method.to_ascii_uppercase());
    }
    Err(PublicError::new(Code::Invalid, "`method` is an HTTP method such as GET or POST"))
}

fn parse_path(path: Option<String>) -> Result<String, PublicError> {
    match path {
        None => Ok("/".to_owned()),
        Some(path) if path.starts_with('/') => Ok(path),
        Some(_) => Err(PublicError::new(Code::Invalid, "`path` begins with a slash, as in \"/items\"")),
    }
}

fn scalars(field: &str, map: Option<BTreeMap<String, Value>>) -> Result<BTreeMap<String, String>, PublicError> {
    let text = |value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    map.unwrap_or_default()
        .into_iter()
        .map(|(name, value)| match text(value) {
            Some(value) => Ok((name, value)),
            None => Err(PublicError::new(Code::Invalid, format!("each value in `{field}` is a string"))),
        })
        .collect()
}

struct Body {
    json: Box<RawValue>,
    is_base64: bool,
}

/// JSON stays as it was written (no number loses a digit), text becomes a string, anything else Base64.
fn body_json(content_type: Option<&str>, body: &[u8]) -> Result<Body, PublicError> {
    if body.is_empty() {
        return Ok(Body { json: RawValue::NULL.to_owned(), is_base64: false });
    }
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if is_json(&media_type) {
        let not_json = |reason: String| {
            let fix = "send valid JSON, or another Content-Type";
            PublicError::new(Code::BadRequest, format!("The body is not JSON ({reason}): {fix}"))
        };
        let text = std::str::from_utf8(body).map_err(|error| not_json(error.to_string()))?;
        let json = serde_json::from_str(text).map_err(|error| not_json(error.to_string()))?;
        return Ok(Body { json, is_base64: false });
    }
    match std::str::from_utf8(body) {
        Ok(text) if is_text(&media_type) => Ok(Body { json: string_json(text), is_base64: false }),
        _ => Ok(Body { json: string_json(&base64::encode(body)), is_base64: true }),
    }
}

fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || media_type.ends_with("+json")
}

fn is_text(media_type: &str) -> bool {
    const TEXT: [&str; 5] = [
        "application/graphql",
        "application/javascript",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",
        "application/xml",
    ];
    media_type.starts_with("text/") || media_type.ends_with("+xml") || TEXT.contains(&media_type)
}

fn string_json(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("a string always serialises")
}

fn hand(call: &Call, body: &Body, id: InvocationId, now: DateTime<Utc>) -> Handed {
    let file = RequestFile {
        body: &body.json,
        query: &call.query,
        headers: &call.headers,
        method: &call.method,
        path: &call.path,
        invocation_id: id,
        is_base64_encoded: body.is_base64,
    };
    Handed { json: serde_json::to_vec(&file).expect("maps of strings always serialise"), info: call.info(now) }
}

fn kept(map: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut room = MAX_INFO_MAP_BYTES;
    map.iter()
        .map(|(name, value)| {
            let secret = CREDENTIALS.contains(&name.as_str());
            let value = if secret { "[redacted]".to_owned() } else { storable(value, MAX_INFO_VALUE_BYTES) };
            (storable(name, MAX_INFO_VALUE_BYTES), value)
        })
        .take_while(|(name, value)| {
            let fits = name.len() + value.len() <= room;
            room = room.saturating_sub(name.len() + value.len());
            fits
        })
        .collect()
}

/// `text` as a database takes it: no NUL (which Postgres refuses in JSON), and cut to `max` bytes with an ellipsis.
pub(crate) fn storable(text: &str, max: usize) -> String {
    let cut = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let mut stored = text[..cut].replace('\0', "\u{fffd}");
    if cut < text.len() {
        stored.push('…');
    }
    stored
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Header names in lower case; repeated ones are joined as RFC 9110 (section 5.3) and RFC 6265 say.
fn visible_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let named_in_connection = |name: &str| {
        headers.get_all(http::header::CONNECTION).iter().any(|value| {
            value.to_str().unwrap_or_default().split(',').any(|word| word.trim().eq_ignore_ascii_case(name))
        })
    };
    let ours = |name: &str| name.starts_with(OWN_HEADER_PREFIX);
    let mut visible = BTreeMap::new();
    for name in headers.keys() {
        if HOP_BY_HOP.contains(&name.as_str()) || ours(name.as_str()) || named_in_connection(name.as_str()) {
            continue;
        }
        let separator = if name == COOKIE { "; " } else { ", " };
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        visible.insert(name.as_str().to_owned(), values.join(separator));
    }
    visible
}

/// `a=1&b=2` as a map; the last value of a repeated name.
fn parse_query(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
