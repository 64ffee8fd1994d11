//! `dartcloud deploy`: packs a folder, uploads it, and shows the build as it goes.

use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use common::manifest::Manifest;
use common::names::FunctionName;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::io::{InspectReader, ReaderStream};

use crate::api::{self, Client, Refusal, Server};
use crate::pack::{self, Packed};
use crate::sse::{Event, Events};
use crate::{failure, output, progress};

/// How long upload and build may take together.
const DEPLOY: Duration = Duration::from_secs(60 * 60);

/// The options of `deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder with the code.
    #[arg(default_value = ".")]
    folder: PathBuf,
    #[command(flatten)]
    server: Server,
    /// The function's name; default: the folder's.
    #[arg(long)]
    name: Option<FunctionName>,
    /// A setting that wins over `dartcloud.toml`, such as `access=public`, `env.GREETING=hello` or
    /// `node_selector.gpu=true`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, Value)>,
    /// Print the server's answer as it is, and no build log.
    #[arg(long)]
    json: bool,
}

/// The settings that are tables.
const TABLES: [&str; 2] = ["env", "node_selector"];

/// Reads one `--set`, and lets [`Manifest`] judge it, so that a wrong one is told before anything is uploaded.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("a setting is key=value")?;
    let value = match key {
        "timeout_ms"
        | "idle_timeout_ms"
        | "memory_mb"
        | "concurrency"
        | "min_warm"
        | "egress"
        | "stale_while_cold_ms" => serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())),
        _ => Value::String(value.to_owned()),
    };
    let setting = (key.to_owned(), value);
    let judged = Manifest::from_json(&settings(std::slice::from_ref(&setting)).to_string());
    judged.map(|_| setting).map_err(|error| format!("{key}: {error}"))
}

/// All `--set` as the JSON object that the server takes.
fn settings(set: &[(String, Value)]) -> Value {
    let mut settings = Map::new();
    for (key, value) in set {
        match key.split_once('.').filter(|(table, _)| TABLES.contains(table)) {
            Some((table, name)) => {
                if let Value::Object(table) = settings.entry(table).or_insert_with(|| Value::Object(Map::new())) {
                    table.insert(name.to_owned(), value.clone());
                }
            }
            None => drop(settings.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(settings)
}

/// The function's name that a folder suggests: its own, in lower case, with hyphens for what a name may not hold.
pub(crate) fn name_of(folder: &Path) -> Option<FunctionName> {
    let name = std::path::absolute(folder).ok()?.components().next_back()?.as_os_str().to_str()?.to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.replace(|c| !allowed(c), "-").trim_matches('-').parse().ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deployed {
    name: String,
    version: u32,
    url: String,
    #[serde(default)]
    build_ms: u64,
    #[serde(default)]
    build_cached: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { folder, server, name, set, json } = args;
    // `.` has a name only where it really is.
    let folder = folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?;
    let name = name
        .or_else(|| name_of(&folder))
        .ok_or_else(|| failure::wrong(format!("{} does not make a function's name: pass --name", folder.display())))?;
    let mut client = Client::new(server)?;
    let begun = Instant::now();
    let shown = folder.display().to_string();
    let packing = tokio::task::spawn_blocking(move || pack::pack(&folder));
    let packed = progress::shown(|| format!("packing {shown}"), packing).await??;
    if !json {
        output::note(format_args!("Packed {} files, {} KiB.", packed.files, packed.bytes.div_ceil(1024)));
    }
    // An expired token is found out before the upload, not after it.
    client.call(Method::GET, "api/auth/me").await?;
    let answer = upload(&mut client, &name, &settings(&set), packed, json).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            if let Some(refusal) = error.chain().find_map(|cause| cause.downcast_ref::<Refusal>()) {
                if json {
                    output::line(&refusal.raw)?;
                }
            }
            return Err(error);
        }
    };
    if json {
        return Ok(output::line(answer)?);
    }
    let deployed: Deployed = api::parse(&answer)?;
    report(&mut client, &deployed, begun.elapsed()).await
}

async fn upload(
    client: &mut Client,
    name: &FunctionName,
    settings: &Value,
    packed: Packed,
    quiet: bool,
) -> anyhow::Result<String> {
    let Packed { file, bytes, .. } = packed;
    let sent = Arc::new(AtomicU64::new(0));
    let posted = client.send(Method::POST, "api/functions/deploy", async |request| {
        let mut file = file.try_clone()?;
        file.rewind()?;
        sent.store(0, Ordering::Relaxed);
        let counted = Arc::clone(&sent);
        let reader = InspectReader::new(tokio::fs::File::from_std(file), move |chunk: &[u8]| {
            counted.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        let archive = Part::stream_with_length(Body::wrap_stream(ReaderStream::new(reader)), bytes)
            .file_name("function.tar.gz")
            .mime_str("application/gzip")?;
        let mut form = Form::new().text("name", name.to_string());
        if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
            form = form.text("settings", settings.to_string());
        }
        let form = form.part("archive", archive);
        Ok(request.timeout(DEPLOY).header("accept", "text/event-stream").multipart(form))
    });
    let doing = || match sent.load(Ordering::Relaxed) {
        sent if sent < bytes => format!("uploading {} of {} KiB", sent / 1024, bytes / 1024),
        _ => "waiting for the server".into(),
    };
    let response = progress::shown(doing, posted).await?;
    let streams =
        response.headers().get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if streams { follow(response, quiet).await } else { api::text(response).await }
}

/// Prints the build's log as it comes, and returns the result.
async fn follow(mut response: Response, quiet: bool) -> anyhow::Result<String> {
    let mut events = Events::default();
    loop {
        let chunk = progress::shown(|| "building", response.chunk()).await;
        let Some(chunk) = chunk.context("the connection broke off: `dartcloud list` tells what became of it")? else {
            anyhow::bail!("the server ended without a result: `dartcloud list` tells what became of it");
        };
        for Event { name, data } in events.feed(&chunk)? {
            match name.as_str() {
                "log" if !quiet => output::note(format_args!("  {data}")),
                "result" => return Ok(data),
                "error" => return Err(Refusal::read(None, &data).into()),
                _ => {}
            }
        }
    }
}

async fn report(client: &mut Client, deployed: &Deployed, took: Duration) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Function {
        access: Option<String>,
    }
    let Deployed { name, version, build_ms, build_cached, .. } = deployed;
    let url = client.absolute(&deployed.url);
    let build = if *build_cached { "build cached".to_owned() } else { format!("build {} ms", build_ms) };
    output::line(format_args!("Deployed {name} v{version} in {:.1} s ({build}).", took.as_secs_f64()))?;
    output::line(&url)?;
    let function = client.call(Method::GET, &format!("api/functions/{name}")).await?;
    let public = api::parse::<Function>(&function)?.access.as_deref() == Some("public");
    let program = std::env::args().next().unwrap_or_else(|| "dartcloud".into());
    let token =
        if public { String::new() } else { format!(" -H \"Authorization: Bearer $({program} whoami --print-token)\"") };
    output::line(format_args!(
        "Try it:\n  curl -d '{{\"name\": \"you\"}}' -H 'Content-Type: application/json'{token} {url}"
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_typed() {
        let set: Vec<_> =
            ["timeout_ms=100", "idle_timeout_ms=7", "egress=true", "access=public", "env.A=1", "env.B=x=y"]
                .into_iter()
                .map(|text| setting(text).unwrap())
                .collect();
        assert_eq!(
            settings(&set),
            json!({
                "timeout_ms": 100, "idle_timeout_ms": 7, "egress": true, "access": "public",
                "env": {"A": "1", "B": "x=y"},
            })
        );
    }

    #[test]
    fn folders_suggest_names() {
        let check = |folder: &str, expected: Option<&str>| {
            assert_eq!(name_of(Path::new(folder)).as_ref().map(FunctionName::as_str), expected, "{folder}");
        };
        check("/a/hello-python", Some("hello-python"));
        check("/a/My Function_2", Some("my-function-2"));
        check("/a/hello/", Some("hello"));
        check("/a/__", None);
        check("/", None);
    }
}
