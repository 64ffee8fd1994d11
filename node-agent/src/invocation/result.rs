//! How a function ended and what it wrote become the outcome, the client's answer and the record's error. Pure;
//! nothing that the function printed ever stands in an answer.

use bytes::Bytes;
use common::base64;
use common::error::{Code, PublicError};
use common::function::Limits;
use common::invocation::{ExecutionError, Outcome};
use common::protocol::OWN_HEADER_PREFIX;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Form;
use super::request::HOP_BY_HOP;
use crate::sandbox::{Exit, How, ResultFile};

/// Most header lines that a function's answer has.
const MAX_HEADERS: usize = 64;
/// Most bytes that they have together, names included.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Longest error text of the function's own that a record keeps, in bytes.
const MAX_ERROR_BYTES: usize = 4096;

/// What an exit came to.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// What the client gets.
    pub(crate) answer: Result<Reply, PublicError>,
    /// What the record says went wrong; `None` for a success.
    pub(crate) failure: Option<ExecutionError>,
    /// The result's `body`, as JSON; `None` for a failure.
    pub(crate) body: Option<Box<RawValue>>,
    /// As the record has it: 128 + n after signal n, −1 after a timeout.
    pub(crate) exit_code: i32,
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Deserialize)]
struct ResultJson<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(borrow, rename = "statusCode")]
    status_code: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    #[serde(borrow, rename = "isBase64Encoded")]
    is_base64_encoded: Option<&'a RawValue>,
}

/// Judges an exit. `result_cap` is what the result was allowed to have, in bytes.
pub(crate) fn judge(exit: &Exit, form: Form, limits: &Limits, result_cap: usize) -> Verdict {
    let crashed = |exit_code, how: String| {
        let public = format!("Function execution failed: {how}; its logs say more");
        let written = written_error(&exit.result).map(|text| format!(": {text}")).unwrap_or_default();
        let message = format!("Function execution failed: {how}{written}");
        failed(Outcome::Crashed, exit_code, public, "execution", message, exit_code.to_string())
    };
    match &exit.how {
        How::Exited(0) => match read(&exit.result, form, result_cap) {
            Ok((answer, body)) => {
                Verdict { outcome: Outcome::Success, answer: Ok(answer), failure: None, body: Some(body), exit_code: 0 }
            }
            Err(reason) => {
                let message = format!("The function gave no valid result: {reason}");
                let code = Code::InvalidResult.word().to_owned();
                failed(Outcome::InvalidResult, 0, message.clone(), "result", message, code)
            }
        },
        How::Exited(code) => crashed(*code, format!("exit code {code}")),
        How::Signaled(signal) => crashed(128 + signal, format!("ended by signal {signal}")),
        How::SpawnFailed(reason) => {
            let public = "Function execution failed: its entrypoint could not be started; its logs say more";
            let message = format!("Function execution failed: its entrypoint could not be started: {reason}");
            failed(Outcome::Crashed, CANNOT_START, public.into(), "execution", message, CANNOT_START.to_string())
        }
        How::OutOfMemory => {
            let message = format!("The function used more than its {} MiB of memory", limits.memory_mb);
            let code = Code::OutOfMemory.word().to_owned();
            failed(Outcome::OutOfMemory, KILLED, message.clone(), "execution", message, code)
        }
        How::TimedOut => {
            let message = format!("Function execution timed out ({}ms)", limits.timeout_ms);
            failed(Outcome::TimedOut, -1, message.clone(), "execution", message, "-1".to_owned())
        }
    }
}

/// The exit code of a program that could not be started, as shells have it.
const CANNOT_START: i32 = 126;
/// The exit code after SIGKILL, which is what the kernel sends for want of memory.
const KILLED: i32 = 137;

pub(super) fn failed(
    outcome: Outcome,
    exit_code: i32,
    public: String,
    phase: &str,
    message: String,
    code: String,
) -> Verdict {
    let public_code = outcome.code().expect("a failure's outcome has a public code");
    Verdict {
        outcome,
        answer: Err(PublicError::new(public_code, public)),
        failure: Some(ExecutionError { phase: phase.to_owned(), message, code }),
        body: None,
        exit_code,
    }
}

/// The error text that a function left in a valid result before it exited with another code than 0.
fn written_error(result: &ResultFile) -> Option<String> {
    let ResultFile::Bytes(bytes) = result else { return None };
    let body: Value = serde_json::from_slice::<Value>(bytes).ok()?.get_mut("body")?.take();
    let text = match &body {
        Value::String(text) => text.clone(),
        Value::Object(fields) => match fields.get("error") {
            Some(Value::String(text)) => text.clone(),
            _ => body.to_string(),
        },
        _ => body.to_string(),
    };
    Some(super::request::storable(&text, MAX_ERROR_BYTES))
}

fn read(result: &ResultFile, form: Form, cap: usize) -> Result<(Reply, Box<RawValue>), String> {
    let bytes = match result {
        ResultFile::Bytes(bytes) => bytes,
        ResultFile::Empty => return Err("it wrote nothing to /result.json".into()),
        ResultFile::TooLarge => return Err(format!("/result.json is larger than {} MiB", cap / (1024 * 1024))),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| "/result.json is not UTF-8".to_owned())?;
    let result: ResultJson<'_> = serde_json::from_str(text).map_err(|error| {
        let what = if error.is_data() { "is not an object with a `body`" } else { "is not JSON" };
        format!("/result.json {what} ({error})")
    })?;
    let reply = match form {
        Form::Envelope => enveloped(result.body),
        Form::Http => http_reply(&result)?,
    };
    Ok((reply, result.body.to_owned()))
}

fn enveloped(body: &RawValue) -> Reply {
    let body = format!(r#"{{"success":true,"result":{}}}"#, body.get());
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Reply { status: StatusCode::OK, headers, body: body.into() }
}

fn http_reply(result: &ResultJson<'_>) -> Result<Reply, String> {
    let status = result.status_code.map_or(Ok(StatusCode::OK), parse_status)?;
    let mut headers = result.headers.map_or(Ok(HeaderMap::new()), parse_headers)?;
    let is_base64 = match result.is_base64_encoded.map(RawValue::get) {
        None | Some("null" | "false") => false,
        Some("true") => true,
        Some(_) => return Err("`isBase64Encoded` is true or false".into()),
    };
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Reply { status, headers, body: Bytes::new() });
    }
    let text: Option<String> = serde_json::from_str(result.body.get()).ok().flatten();
    let (body, default_type) = match text {
        Some(text) if is_base64 => {
            let bytes = base64::decode(&text).map_err(|error| format!("`body` is not Base64 ({error})"))?;
            (Bytes::from(bytes), "application/octet-stream")
        }
        None if is_base64 => return Err("`isBase64Encoded` is true and `body` is not a string".into()),
        Some(text) => (Bytes::from(text), "text/plain; charset=utf-8"),
        None => (Bytes::copy_from_slice(result.body.get().as_bytes()), "application/json"),
    };
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(default_type));
    Ok(Reply { status, headers, body })
}

fn parse_status(raw: &RawValue) -> Result<StatusCode, String> {
    if raw.get() == "null" {
        return Ok(StatusCode::OK);
    }
    let number: Option<u16> = serde_json::from_str(raw.get()).ok();
    number
        .filter(|status| (200..=599).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| "`statusCode` is a whole number from 200 to 599".to_owned())
}

fn parse_headers(raw: &RawValue) -> Result<HeaderMap, String> {
    let shape = || "`headers` is an object of strings, or of lists of strings".to_owned();
    let fields: Option<serde_json::Map<String, Value>> = serde_json::from_str(raw.get()).map_err(|_| shape())?;
    let mut headers = HeaderMap::new();
    let mut room = MAX_HEADER_BYTES;
    for (name, value) in fields.unwrap_or_default() {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a name in `headers` is not valid".to_owned())?;
        if is_dropped(&name) {
            continue;
        }
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(truth) => truth.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => return Err(shape()),
            };
            let length = name.as_str().len() + text.len();
            if length > room || headers.len() >= MAX_HEADERS {
                return Err(format!("`headers` has more than {MAX_HEADERS} lines or {MAX_HEADER_BYTES} bytes"));
            }
            room -= length;
            let value =
                HeaderValue::from_str(&text).map_err(|_| format!("the value of `{name}` in `headers` is not valid"))?;
            headers.append(name.clone(), value);
        }
    }
    Ok(headers)
}

/// What speaks of the connection, or in our name, is not the function's to say.
fn is_dropped(name: &HeaderName) -> bool {
    name == CONTENT_LENGTH || HOP_BY_HOP.contains(&name.as_str()) || name.as_str().starts_with(OWN_HEADER_PREFIX)
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
