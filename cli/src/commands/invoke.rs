//! `dartcloud invoke`: calls a function and prints its result.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use anyhow::Context as _;
use common::error::{Code, Fault};
use common::names::FunctionName;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

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

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
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
    match api::parse::<Answer>(&answer)?.result {
        Value::String(text) => output::line(text)?,
        result => output::line(serde_json::to_string_pretty(&result)?)?,
    }
    Ok(())
}

/// Whether a call that failed so may have run: what was refused before has no record.
fn has_story(code: &str) -> bool {
    Code::ALL.iter().any(|known| known.word() == code && known.fault() != Fault::Client)
}

/// What the function is to see; what is not named is left to the server.
fn envelope(args: &Args) -> anyhow::Result<Value> {
    let mut envelope = Map::new();
    if let Some(body) = &args.body {
        envelope.insert("body".into(), body_of(body)?);
    }
    let text = |pairs: &[(String, String)]| {
        Value::Object(pairs.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect())
    };
    for (name, pairs) in [("query", &args.query), ("headers", &args.header)] {
        if !pairs.is_empty() {
            envelope.insert(name.into(), text(pairs));
        }
    }
    for (name, value) in [("method", &args.method), ("path", &args.path)] {
        if let Some(value) = value {
            envelope.insert(name.into(), Value::String(value.clone()));
        }
    }
    Ok(Value::Object(envelope))
}

fn body_of(text: &str) -> anyhow::Result<Value> {
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
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn check(words: &[&str], expected: Result<Value, &str>) {
        let line = Line::try_parse_from([&["invoke", "hello"], words].concat()).unwrap();
        match (envelope(&line.args), expected) {
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
        check(&[], Ok(json!({})));
        check(&["--body", "{\"a\": 1}"], Ok(json!({"body": {"a": 1}})));
        check(&["--body", "-1"], Ok(json!({"body": -1})));
        check(&["--body", &at_file], Ok(json!({"body": [1]})));
        check(&["--body", "hello"], Err("the body is not JSON"));
        check(&["--body", "@/no/such/file"], Err("cannot read /no/such/file"));
        let all = ["--query", "a=b=c", "--query", "d=", "--header", "X-A: b:c", "--method", "PUT", "--path", "/x"];
        let expected =
            json!({"query": {"a": "b=c", "d": ""}, "headers": {"x-a": "b:c"}, "method": "PUT", "path": "/x"});
        check(&all, Ok(expected));
    }
}
