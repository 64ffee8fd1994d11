//! `dartcloud logs`: the last calls of a function, oldest first, and what it printed.

use std::collections::HashSet;
use std::time::Duration;

use common::invocation::Logs;
use common::names::FunctionName;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::{self, Client, Refusal, Server};
use crate::output::{self, Closed};
use crate::progress;

/// Between two looks of `--follow`.
const PAUSE: Duration = Duration::from_secs(1);
/// How many calls `--follow` sees in one look.
const FOLLOWED: u32 = 200;
/// How often in a row `--follow` lets a look fail.
const FAILURES: u32 = 30;

/// The options of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function, by its name or id.
    function: FunctionName,
    #[command(flatten)]
    server: Server,
    /// How many calls, at most.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on with new calls as they come; Ctrl-C ends it.
    #[arg(long, short)]
    follow: bool,
    /// Print the server's answer as it is; with --follow a call a line.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Page {
    logs: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    id: String,
    status: String,
    duration_ms: u64,
    error: Option<String>,
    #[serde(default)]
    logs: Option<Logs>,
    created_at: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { function, server, limit, follow, json } = args;
    let mut client = Client::new(server)?;
    let path = |limit: u32| format!("api/functions/{function}/logs?limit={limit}");
    let first = progress::shown(|| "waiting for the server", client.call(Method::GET, &path(limit))).await?;
    if json && !follow {
        return Ok(output::line(first)?);
    }
    let mut seen = HashSet::new();
    show(&first, &mut seen, json)?;
    if !follow {
        if seen.is_empty() {
            output::note(format_args!("{function} was not called yet: `dartcloud invoke {function}`."));
        }
        return Ok(());
    }
    let mut failures = 0;
    loop {
        tokio::time::sleep(PAUSE).await;
        match client.call(Method::GET, &path(FOLLOWED.max(limit))).await {
            Ok(page) => {
                failures = 0;
                show(&page, &mut seen, json)?;
            }
            Err(error) if error.is::<Refusal>() || failures >= FAILURES => return Err(error),
            // A server that is being restarted comes back.
            Err(_) => failures += 1,
        }
    }
}

fn show(page: &str, seen: &mut HashSet<String>, json: bool) -> anyhow::Result<()> {
    let News { calls, gap } = news(page, seen)?;
    if gap {
        output::note("Some calls came too fast to be shown.");
    }
    for (call, raw) in &calls {
        if json { output::line(raw.get())? } else { print(call)? }
    }
    Ok(())
}

/// What a page brings.
struct News {
    /// Oldest first.
    calls: Vec<(Call, Box<RawValue>)>,
    /// Whether there may be others between these and the last page's.
    gap: bool,
}

/// The calls of `page` that the last one did not have; `seen` becomes the ids of this one. Those older than all of
/// the last page's are no news: that page was shorter.
fn news(page: &str, seen: &mut HashSet<String>) -> anyhow::Result<News> {
    let mut calls = Vec::new();
    for raw in api::parse::<Page>(page)?.logs {
        calls.push((api::parse::<Call>(raw.get())?, raw));
    }
    if calls.is_empty() {
        return Ok(News { calls, gap: false });
    }
    let ids: HashSet<String> = calls.iter().map(|(call, _)| call.id.clone()).collect();
    let oldest_seen = calls.iter().rposition(|(call, _)| seen.contains(&call.id));
    let gap = !seen.is_empty() && oldest_seen.is_none();
    calls.truncate(oldest_seen.map_or(calls.len(), |at| at + 1));
    calls.retain(|(call, _)| !seen.contains(&call.id));
    calls.reverse();
    *seen = ids;
    Ok(News { calls, gap })
}

fn print(call: &Call) -> Result<(), Closed> {
    output::line(format_args!("{}  {}  {} ms  {}", call.created_at, call.status, call.duration_ms, call.id))?;
    if let Some(error) = &call.error {
        output::line(format_args!("  error: {error}"))?;
    }
    let Some(printed) = call.logs.as_ref().and_then(|logs| logs.container.as_ref()) else { return Ok(()) };
    for (name, text) in [("out", &printed.stdout), ("err", &printed.stderr)] {
        for text in text.lines() {
            output::line(format_args!("  {name}: {text}"))?;
        }
    }
    if printed.truncated {
        output::line("  (it printed more than is kept)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_overlap() {
        let mut seen = HashSet::new();
        let mut check = |newest_first: &[&str], expected: &[&str], gap: bool| {
            let call = |id: &&str| serde_json::json!({"id": id, "status": "success", "durationMs": 1, "createdAt": ""});
            let logs: Vec<_> = newest_first.iter().map(call).collect();
            let found = news(&serde_json::json!({"logs": logs, "next": null}).to_string(), &mut seen).unwrap();
            let ids: Vec<&str> = found.calls.iter().map(|(call, _)| call.id.as_str()).collect();
            assert_eq!((ids.as_slice(), found.gap), (expected, gap), "{newest_first:?}");
        };
        check(&[], &[], false);
        check(&["b", "a"], &["a", "b"], false);
        check(&["d", "c", "b", "a", "older"], &["c", "d"], false);
        check(&[], &[], false);
        check(&["d", "late", "c"], &["late"], false);
        check(&["x", "w"], &["w", "x"], true);
    }
}
