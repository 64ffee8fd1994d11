//! `dartcloud invoke`: calls a function and prints its result. JSON passes through unread, so that no number is
//! rounded and no order lost.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use anyhow::Context as _;
use common::error::{Code, Fault};
use common::names::FunctionName;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::api::{self, Client, Refusal, Server};
use crate::{failure, output, progress};

/// How long an answer may take: the largest ceiling on a function's time, and a cold start.
const ANSWER: Duration = Duration::from_secs(24 * 60 * 60 + 60);
/// Largest body that is read, in bytes; the server has a limit of its own.
const MAX_BODY_BYTES: u64 = 64 * 1024 * 1024;

/// The options of `invoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function, by its name or id.
    function: FunctionName,
    #[command(flatten)]
    server: Server,
    /// The body, as JSON; `@file` reads a file, `-` standard input.
    #[arg(long, short, allow_hyphen_values = true)]
    body: Option<String>,
    /// The path that the function sees.
    #[arg(long)]
    path: Option<String>,
    /// The method that the function sees.
    #[arg(long)]
    method: Option<String>,
    /// A parameter of the query; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    query: Vec<(String, String)>,
    /// A header; may be repeated.
    #[arg(long, value_name = "NAME:VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a parameter is name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is name:value")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// What the function is to see; what is not named is left to the server.
#[derive(Debug, Serialize)]
struct Envelope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    query: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    /// `None` is JSON's null.
    result: Option<Box<RawValue>>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let envelope = serde_json::to_vec(&envelope(&args)?)?;
    let Args { function, server, json, .. } = args;
    let mut client = Client::new(server)?;
    let path = format!("api/functions/{function}/invoke");
    let called = client.send(Method::POST, &path, async |request| {
        Ok(request.timeout(ANSWER).header("content-type", "application/json").body(envelope.clone()))
    });
    let answer = progress::shown(|| format!("waiting for {function}"), async { api::text(called.await?).await }).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let Some(refusal) = error.downcast_ref::<Refusal>() else { return Err(error) };
            if json {
                output::line(&refusal.raw)?;
            }
            if let Some(id) = refusal.request_id.as_ref().filter(|_| has_story(&refusal.code)) {
                output::note(format_args!("What happened in this call: dartcloud why {id}"));
            }
            return Err(error);
        }
    };
    if json {
        return Ok(output::line(answer)?);
    }
    let result = api::parse::<Answer>(&answer)?.result;
    Ok(output::line(shown(result.as_deref().map_or("null", RawValue::get)))?)
}

/// Whether a call that failed so may have run: what was refused before has no record.
fn has_story(code: &str) -> bool {
    Code::ALL.iter().any(|known| known.word() == code && known.fault() != Fault::Client)
}

/// A text without its quotes, anything else as it came.
fn shown(json: &str) -> Cow<'_, str> {
    match serde_json::from_str::<String>(json) {
        Ok(text) => text.into(),
        Err(_) => json.into(),
    }
}

fn envelope(args: &Args) -> anyhow::Result<Envelope<'_>> {
    fn pairs(pairs: &[(String, String)]) -> BTreeMap<&str, &str> {
        pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
    Ok(Envelope {
        body: args.body.as_deref().map(body_of).transpose()?,
        query: pairs(&args.query),
        headers: pairs(&args.header),
        method: args.method.as_deref(),
        path: args.path.as_deref(),
    })
}

fn body_of(text: &str) -> anyhow::Result<Box<RawValue>> {
    let bytes = match text.strip_prefix('@') {
        Some(path) => read(File::open(path).with_context(|| format!("cannot read {path}"))?)?,
        None if text == "-" => read(io::stdin().lock())?,
        None => text.as_bytes().to_vec(),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        failure::wrong(format!("the body is not JSON ({error}): a text stands in quotes, as in --body '\"text\"'"))
    })
}

fn read(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_BODY_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BODY_BYTES {
        return Err(failure::wrong(format!("the body is over {} MiB", MAX_BODY_BYTES >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn check(words: &[&str], expected: Result<&str, &str>) {
        let line = Line::try_parse_from([&["invoke", "hello"], words].concat()).unwrap();
        match (envelope(&line.args).map(|envelope| serde_json::to_string(&envelope).unwrap()), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#} has no {part}"),
            (got, expected) => panic!("{words:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn only_what_ran_has_a_story() {
        for (code, expected) in [("timeout", true), ("no_sandbox", true), ("not_found", false), ("unheard_of", false)] {
            assert_eq!(has_story(code), expected, "{code}");
        }
    }

    #[test]
    fn envelopes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "[1]").unwrap();
        let at_file = format!("@{}", file.path().display());
        check(&[], Ok("{}"));
        check(&["--body", "{\"b\": 1, \"a\": 2}"], Ok(r#"{"body":{"b": 1, "a": 2}}"#));
        check(&["--body", "-1"], Ok(r#"{"body":-1}"#));
        check(&["--body", " 12345678901234567890123 "], Ok(r#"{"body":12345678901234567890123}"#));
        check(&["--body", "[1.10, 1e400]"], Ok(r#"{"body":[1.10, 1e400]}"#));
        check(&["--body", "null"], Ok(r#"{"body":null}"#));
        check(&["--body", &at_file], Ok(r#"{"body":[1]}"#));
        check(&["--body", "hello"], Err("the body is not JSON"));
        check(&["--body", "1 2"], Err("the body is not JSON"));
        check(&["--body", "@/no/such/file"], Err("cannot read /no/such/file"));
        let all = ["--query", "a=b=c", "--query", "d=", "--header", "X-A: b:c", "--method", "PUT", "--path", "/x"];
        check(&all, Ok(r#"{"query":{"a":"b=c","d":""},"headers":{"x-a":"b:c"},"method":"PUT","path":"/x"}"#));
    }

    #[test]
    fn results() {
        let check = |answer: &str, expected: &str| {
            let result = api::parse::<Answer>(answer).unwrap().result;
            assert_eq!(shown(result.as_deref().map_or("null", RawValue::get)), expected);
        };
        check(r#"{"success":true,"result":"a\nb"}"#, "a\nb");
        check(r#"{"result":{"b":12345678901234567890123,"a":1.10}}"#, r#"{"b":12345678901234567890123,"a":1.10}"#);
        check(r#"{"result":null}"#, "null");
        check("{}", "null");
    }
}
