//! The soak: a mix of calls at a share of its own peak, for long. Nothing may fail, each answer has its record, and what
//! gateway and agent hold of memory, descriptors and threads stands still.

use std::collections::HashMap;
use std::process::Command;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use serde_json::json;

use crate::child::run;
use crate::load::{Aim, Sample, closed, paced};
use crate::machine::{descriptors, resident_mb, threads};
use crate::platform::Platform;
use crate::program::Program;
use crate::stage::Stage;
use crate::stats::median;

/// How long the peak is looked for, and the load before that, which fills the pools.
const PEAK: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(10);

/// One step: the load is paced for as long, and then everything is looked at.
const STEP: Duration = Duration::from_secs(60);

/// Minutes that do not count for what stands still: pools and buffers are still growing to their size.
const SETTLES: usize = 3;

/// By how much the last quarter may be above the first, as a ratio: memory of tens of MB swings by so much from one
/// quarter of an hour to the next, up and down.
const FLAT: f64 = 1.10;

/// Threads for what blocks come and go, one or two at a time.
const POOL_THREADS: f64 = 2.0;

/// How long the token of the calls is good: the longest that there is.
const TOKEN_SECONDS: &str = "86400";

/// How long the last records may take to reach the database.
const SHIPPED_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);

/// How long to soak.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes of load, after the peak is known; at most as long as a token lives.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_380))]
    minutes: u32,
    /// The share of the peak.
    #[arg(long, default_value_t = 0.7, value_parser = share)]
    share: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("more than 0 and at most 1".to_owned()) }
}

/// One kind of call, and its connections.
struct Stream {
    name: &'static str,
    aim: Aim,
    connections: usize,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Held {
    resident_mb: f64,
    descriptors: usize,
    threads: usize,
}

/// What one minute came to.
#[derive(Clone, Debug, Serialize)]
struct Minute {
    answered: usize,
    per_second: f64,
    /// Of each kind of call, in microseconds.
    p50_us: HashMap<&'static str, f64>,
    p99_us: HashMap<&'static str, f64>,
    failures: Vec<String>,
    gateway: Held,
    agent: Held,
}

/// The whole of it, as it is written.
#[derive(Debug, Serialize)]
struct Outcome {
    started_at: String,
    minutes: Vec<Minute>,
    peak_per_second: f64,
    answered: usize,
    failed: usize,
    records: usize,
    records_of_success: usize,
    /// The last quarter over the first.
    growth: Vec<Growth>,
    held: bool,
}

/// Soaks, prints each minute and the outcome; whether all held.
pub(crate) fn soak(arguments: Arguments, stage: &Stage, results: &std::path::Path) -> Result<bool> {
    let started_at = Utc::now();
    let platform = Platform::whole(stage, &[("ACCESS_TOKEN_SECONDS", TOKEN_SECONDS)])?;
    let streams = streams(&platform, stage)?;
    let warm_up = at_once(&streams, |stream| closed(&stream.aim, stream.connections, WARM_UP, &[]))?;
    let peak = at_once(&streams, |stream| closed(&stream.aim, stream.connections, PEAK, &[]))?;
    let mut answered: usize = warm_up.iter().chain(&peak).map(|sample| sample.latencies.count()).sum();
    let rates: Vec<f64> = peak.iter().map(|sample| sample.per_second * arguments.share).collect();
    let peak_per_second = peak.iter().map(|sample| sample.per_second).sum();
    println!("peak {peak_per_second:.0} calls/s; {} min at {:.0} %", arguments.minutes, arguments.share * 100.0);
    let mut minutes = Vec::new();
    for number in 1..=arguments.minutes {
        let minute = minute(&platform, &streams, &rates)?;
        answered += minute.answered;
        println!("{}", line(number, &minute));
        minutes.push(minute);
    }
    let failed = minutes.iter().map(|minute| minute.failures.len()).sum();
    let (records, records_of_success) = records(&platform, answered)?;
    let growth = growth(&minutes);
    let held = failed == 0
        && records == answered
        && records_of_success == answered
        && growth.iter().all(|growth| growth.is_flat);
    let outcome = Outcome {
        started_at: started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        minutes,
        peak_per_second,
        answered,
        failed,
        records,
        records_of_success,
        growth,
        held,
    };
    std::fs::create_dir_all(results)?;
    let file = results.join(format!("soak-{}.json", started_at.format("%Y-%m-%d-%H%M")));
    std::fs::write(&file, serde_json::to_string_pretty(&outcome)?)?;
    println!("\n{}\n{}", summary(&outcome), file.display());
    Ok(held)
}

/// A no-op by the file contract, a Python function, and a server.
fn streams(platform: &Platform, stage: &Stage) -> Result<Vec<Stream>> {
    platform.deploy("noop", &Program::native(stage)?, &json!({"concurrency": 100}))?;
    platform.deploy("python", &Program::python(stage)?, &json!({"concurrency": 100}))?;
    platform.deploy("server", &Program::server(stage)?, &json!({"contract": "http", "concurrency": 1000}))?;
    Ok(vec![
        Stream { name: "native by files", aim: platform.call("noop"), connections: 8 },
        Stream { name: "Python by files", aim: platform.call("python"), connections: 4 },
        Stream { name: "server", aim: platform.get_private("server"), connections: 8 },
    ])
}

/// Does it for all kinds of calls at once; each must go well.
fn at_once(streams: &[Stream], each: impl Fn(&Stream) -> Result<Sample> + Sync) -> Result<Vec<Sample>> {
    std::thread::scope(|scope| {
        let threads: Vec<ScopedJoinHandle<'_, _>> = streams.iter().map(|one| scope.spawn(|| each(one))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    })
}

fn minute(platform: &Platform, streams: &[Stream], rates: &[f64]) -> Result<Minute> {
    let samples: Vec<Result<Sample>> = std::thread::scope(|scope| {
        let of = |(stream, rate): (&Stream, &f64)| paced(&stream.aim, stream.connections, *rate, STEP);
        let threads: Vec<_> = streams.iter().zip(rates).map(|pair| scope.spawn(move || of(pair))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let mut minute = Minute {
        answered: 0,
        per_second: 0.0,
        p50_us: HashMap::new(),
        p99_us: HashMap::new(),
        failures: Vec::new(),
        gateway: held(platform.gateway())?,
        agent: held(platform.node())?,
    };
    for (stream, sample) in streams.iter().zip(samples) {
        match sample {
            Ok(sample) => {
                minute.answered += sample.latencies.count();
                minute.per_second += sample.per_second;
                minute.p50_us.insert(stream.name, sample.latencies.at(0.5));
                minute.p99_us.insert(stream.name, sample.latencies.at(0.99));
            }
            // How many of this minute were answered is not known then, but that does not matter any more.
            Err(error) => minute.failures.push(format!("{}: {error:#}", stream.name)),
        }
    }
    Ok(minute)
}

fn held(pid: u32) -> Result<Held> {
    Ok(Held { resident_mb: resident_mb(pid)?, descriptors: descriptors(pid)?, threads: threads(pid)? })
}

fn line(number: u32, minute: &Minute) -> String {
    let of =
        |held: &Held| format!("{:.1} MB, {} descriptors, {} threads", held.resident_mb, held.descriptors, held.threads);
    let mut names: Vec<_> = minute.p50_us.keys().collect();
    names.sort_unstable();
    let times = names
        .iter()
        .map(|name| format!("{name} p50 {:.1} p99 {:.1} ms", minute.p50_us[*name] / 1e3, minute.p99_us[*name] / 1e3));
    let times = times.collect::<Vec<_>>().join(", ");
    let failed = if minute.failures.is_empty() { String::new() } else { format!("; FAILED: {:?}", minute.failures) };
    let (gateway, agent) = (of(&minute.gateway), of(&minute.agent));
    format!("{number:4} min: {:.0} calls/s; {times}; gateway {gateway}; agent {agent}{failed}", minute.per_second)
}

/// A measure in the first and in the last quarter of the minutes.
#[derive(Debug, Serialize)]
struct Growth {
    what: &'static str,
    first: f64,
    last: f64,
    is_flat: bool,
}

/// How the last quarter of the minutes compares with the first, once all has settled; nothing if there are too few.
fn growth(minutes: &[Minute]) -> Vec<Growth> {
    let settled = minutes.get(SETTLES..).unwrap_or_default();
    let quarter = settled.len() / 4;
    if quarter == 0 {
        return Vec::new();
    }
    let (first, last) = (&settled[..quarter], &settled[settled.len() - quarter..]);
    type Of = fn(&Minute) -> f64;
    let measures: [(&str, Of, f64); 6] = [
        ("gateway's MB", |minute| minute.gateway.resident_mb, 0.0),
        ("gateway's descriptors", |minute| minute.gateway.descriptors as f64, 0.0),
        ("gateway's threads", |minute| minute.gateway.threads as f64, POOL_THREADS),
        ("agent's MB", |minute| minute.agent.resident_mb, 0.0),
        ("agent's descriptors", |minute| minute.agent.descriptors as f64, 0.0),
        ("agent's threads", |minute| minute.agent.threads as f64, POOL_THREADS),
    ];
    let compared = |(what, of, slack): (&'static str, Of, f64)| {
        let [first, last] = [first, last].map(|part| median(&part.iter().map(of).collect::<Vec<_>>()));
        Growth { what, first, last, is_flat: last <= (first * FLAT).max(first + slack) }
    };
    measures.into_iter().map(compared).collect()
}

/// All records, and those of calls that went well, once they are as many as were answered or time is up. Counted by
/// another program than ours, in the database itself.
fn records(platform: &Platform, answered: usize) -> Result<(usize, usize)> {
    let count = "import sqlite3, sys\n\
        print(*sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).execute(\
        \"select count(*), count(*) filter (where outcome = 'success') from function_invocations\").fetchone())";
    let database = platform.database();
    let deadline = Instant::now() + SHIPPED_WITHIN;
    loop {
        let said = String::from_utf8(run(Command::new("python3").args(["-c", count]).arg(&database))?)?;
        let mut words = said.split_whitespace().map(str::parse);
        let (Some(Ok(all)), Some(Ok(good))) = (words.next(), words.next()) else {
            bail!("no counts: {said}");
        };
        if all >= answered || Instant::now() > deadline {
            return Ok((all, good));
        }
        std::thread::sleep(LOOK);
    }
}

fn summary(outcome: &Outcome) -> String {
    if outcome.growth.is_empty() {
        return format!(
            "{} answered, {} failed, {} records; too short to say what grows",
            outcome.answered, outcome.failed, outcome.records
        );
    }
    let all = outcome.growth.iter().map(|growth| format!("{} {:.1} → {:.1}", growth.what, growth.first, growth.last));
    let all: Vec<String> = all.collect();
    format!(
        "{} answered, {} failed, {} records, {} of them of a success\nlast quarter over the first: {}\n{}",
        outcome.answered,
        outcome.failed,
        outcome.records,
        outcome.records_of_success,
        all.join(", "),
        if outcome.held { "all held" } else { "NOT HELD" }
    )
}
