//! `dartcloud why`: the story of one call: where it ran, what its time went into, which limits it hit, what it printed.

use std::time::{Duration, Instant, SystemTime};

use common::error::Code;
use common::ids::InvocationId;
use common::phases::ColdCause;
use reqwest::Method;
use serde::Deserialize;

use crate::api::{self, Client, Refusal, Server};
use crate::{output, progress};

/// Columns of a bar that stands for the whole time.
const BAR: f64 = 40.0;

/// How long the record of a fresh call is waited for: it comes from the node in batches.
const PATIENCE: Duration = Duration::from_secs(3);
/// How old a call may be to be fresh.
const FRESH: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// The options of `why`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The call, by its request id: the X-Request-Id of its answer, the `request_id` of an error, the id in `logs`.
    #[arg(value_name = "REQUEST ID", value_parser = request_id)]
    id: InvocationId,
    #[command(flatten)]
    server: Server,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

fn request_id(text: &str) -> Result<InvocationId, &'static str> {
    text.parse()
        .map_err(|_| "a request id looks like 01890a5d-ac96-774b-bcce-b302099a8057, and `dartcloud logs` shows some")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Story {
    id: String,
    function: Function,
    version: u32,
    node: String,
    outcome: String,
    cold: Cold,
    phases: Phases,
    limits: Limits,
    peak_memory_bytes: u64,
    created_at: String,
    request_info: Request,
    logs: Printed,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
}

#[derive(Deserialize)]
struct Cold {
    is: bool,
    /// A word that a newer server may have and this program not.
    cause: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Phases {
    gate_ms: Option<f64>,
    auth_ms: Option<f64>,
    queue_ms: Option<f64>,
    cold_ms: Option<f64>,
    fn_ms: Option<f64>,
    total_ms: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Limits {
    timeout_ms: u32,
    memory_mb: u32,
    hit: Vec<String>,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    path: String,
}

#[derive(Deserialize)]
struct Printed {
    stdout: String,
    stderr: String,
    truncated: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let answer = progress::shown(|| "waiting for the call's record", recorded(&mut client, args.id)).await?;
    if args.json {
        return Ok(output::line(answer)?);
    }
    for line in told(&api::parse(&answer)?) {
        output::line(line)?;
    }
    Ok(())
}

/// The answer; a call that was just made is looked for again for a moment.
async fn recorded(client: &mut Client, id: InvocationId) -> anyhow::Result<String> {
    let path = format!("api/invocations/{id}");
    // An age below zero is that of a server whose clock is ahead.
    let age = id.made_at().map(|made| SystemTime::now().duration_since(made.into()).unwrap_or_default());
    let fresh = age.is_some_and(|age| age < FRESH);
    let deadline = Instant::now() + if fresh { PATIENCE } else { Duration::ZERO };
    loop {
        match client.call(Method::GET, &path).await {
            Err(error) if Instant::now() < deadline && is_absence(&error) => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

fn is_absence(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == Code::NotFound.word())
}

/// The story in lines.
fn told(story: &Story) -> Vec<String> {
    let Story { function, version, outcome, created_at, request_info: Request { method, path }, limits, .. } = story;
    let mib = story.peak_memory_bytes as f64 / (1024.0 * 1024.0);
    let hit = if limits.hit.is_empty() { "none".to_owned() } else { limits.hit.join(", ") };
    let mut lines = vec![
        format!("{} v{version}: {outcome}", function.name),
        format!("  call    {}, {method} {path}, {created_at}", story.id),
        format!("  node    {}", story.node),
        format!("  start   {}", start(&story.cold)),
        format!("  limits  {} ms, {} MiB; hit: {hit}", limits.timeout_ms, limits.memory_mb),
        format!("  memory  {mib:.1} MiB at most"),
    ];
    lines.extend(story.error.iter().map(|error| format!("  error   {error}")));
    lines.extend(bars(story.phases));
    for (name, text) in [("out", &story.logs.stdout), ("err", &story.logs.stderr)] {
        lines.extend(text.lines().map(|text| format!("  {name}: {text}")));
    }
    if story.logs.truncated {
        lines.push("  (it printed more than is kept)".to_owned());
    }
    lines
}

fn start(cold: &Cold) -> String {
    let sentence = |word| ColdCause::from_word(word).map(ColdCause::sentence);
    let cause = cold.cause.as_deref().map(|word| sentence(word).unwrap_or(word));
    match (cold.is, cause) {
        (false, _) => "warm".to_owned(),
        (true, None) => "cold".to_owned(),
        (true, Some(cause)) => format!("cold: {cause}"),
    }
}

/// A line for each phase that was measured, with its share of the whole as a bar.
fn bars(phases: Phases) -> Vec<String> {
    let Phases { gate_ms, auth_ms, queue_ms, cold_ms, fn_ms, total_ms } = phases;
    let known = |parts: &[Option<f64>]| parts.iter().flatten().sum::<f64>();
    let at_node = known(&[queue_ms, cold_ms, fn_ms]);
    // Reading the request, judging the result.
    let rest_ms = total_ms.map(|total| (total - at_node).max(0.0));
    let whole = known(&[gate_ms, auth_ms]) + total_ms.unwrap_or(at_node);
    let parts = [
        ("gate", gate_ms),
        ("auth", auth_ms),
        ("queue", queue_ms),
        ("cold", cold_ms),
        ("fn", fn_ms),
        ("rest", rest_ms),
    ];
    let measured: Vec<(&str, f64)> = parts.into_iter().filter_map(|(name, ms)| Some((name, ms?))).collect();
    if measured.is_empty() {
        return Vec::new();
    }
    let width = format!("{whole:.3}").len();
    let line = |(name, ms): (&str, f64)| {
        let columns = if whole > 0.0 { (ms / whole * BAR).round() as usize } else { 0 };
        format!("  {name:6}  {ms:width$.3} ms  {}", "#".repeat(columns)).trim_end().to_owned()
    };
    let mut lines: Vec<String> = measured.into_iter().map(line).collect();
    lines.push(format!("  {:6}  {whole:width$.3} ms", "total"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(phases: Phases, expected: &[&str]) {
        assert_eq!(bars(phases), expected);
    }

    #[test]
    fn phases_as_bars() {
        check(Phases::default(), &[]);
        let warm = Phases {
            gate_ms: Some(0.02),
            auth_ms: Some(0.04),
            queue_ms: Some(0.003),
            fn_ms: Some(20.5),
            total_ms: Some(41.0),
            ..Phases::default()
        };
        let warm_lines = [
            "  gate     0.020 ms",
            "  auth     0.040 ms",
            "  queue    0.003 ms",
            "  fn      20.500 ms  ####################",
            "  rest    20.497 ms  ####################",
            "  total   41.060 ms",
        ];
        check(warm, &warm_lines);
        // As an older agent's record has it, and a call that failed before anything was measured.
        check(Phases { fn_ms: Some(0.0), ..Phases::default() }, &["  fn      0.000 ms", "  total   0.000 ms"]);
    }

    #[test]
    fn starts() {
        let check = |is, cause: Option<&str>, expected: &str| {
            assert_eq!(start(&Cold { is, cause: cause.map(str::to_owned) }), expected);
        };
        check(false, None, "warm");
        check(true, None, "cold");
        check(true, Some("first_call"), "cold: the first call of this version on this node");
        check(true, Some("whim"), "cold: whim");
    }
}
