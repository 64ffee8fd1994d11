//! The benchmarks: each target side by side with what it is compared against, in interleaved rounds of one run.
//! `bench/run` builds everything and starts this.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark's product is what it prints")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};
use chrono::{SecondsFormat, Utc};
use clap::{Parser, Subcommand};

use crate::machine::Cores;
use crate::report::{Failure, Report, quantity, verdict};
use crate::stage::{Scale, Stage};
use crate::targets::{ALL, Target};

mod bare;
mod child;
mod engine;
mod freezer;
mod html;
mod http1;
mod load;
mod machine;
mod nginx;
mod placement;
mod platform;
mod plot;
mod program;
mod report;
mod soak;
mod stage;
mod standin_gateway;
mod standin_node;
mod stats;
mod targets;

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure.
    Run(Run),
    /// Put load on for long, and see that nothing fails and nothing grows.
    Soak(Soak),
    /// Simulate the placement of many functions on many nodes.
    Placement(placement::Arguments),
    /// Stand in for a node; a run starts this by itself.
    #[command(hide = true)]
    Node(standin_node::Arguments),
}

/// What `bench/run` passes.
#[derive(Clone, clap::Args)]
struct Run {
    /// Targets, such as `P1 F3`; none means all.
    #[arg(value_parser = named)]
    targets: Vec<&'static str>,
    /// Fewer rounds, shorter ones, fewer functions: to see whether it runs, not to know the figures.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    places: Places,
}

#[derive(Clone, clap::Args)]
struct Soak {
    #[command(flatten)]
    how: soak::Arguments,
    #[command(flatten)]
    places: Places,
}

/// Where things are and go.
#[derive(Clone, clap::Args)]
struct Places {
    /// The directory of the release programs.
    #[arg(long)]
    programs: PathBuf,
    /// Where downloads are kept.
    #[arg(long)]
    kept: PathBuf,
    /// An empty folder for all that is made.
    #[arg(long)]
    folder: PathBuf,
    /// The same in memory.
    #[arg(long)]
    memory: PathBuf,
    /// Where the report is written.
    #[arg(long)]
    results: PathBuf,
}

impl Places {
    fn stage(&self, cores: &Cores, scale: Scale) -> Stage {
        let Self { programs, kept, folder, memory, .. } = self.clone();
        Stage { cores: cores.clone(), scale, programs, kept, folder, memory }
    }
}

fn named(text: &str) -> Result<&'static str> {
    let found = ALL.iter().find(|target| target.name.eq_ignore_ascii_case(text));
    let names =
        || ALL.iter().map(|target| format!("  {}  {}", target.name, target.what)).collect::<Vec<_>>().join("\n");
    found.map(|target| target.name).with_context(|| format!("no target is called so; there are:\n{}", names()))
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Run(arguments) => run(&arguments),
        What::Soak(Soak { how, places }) => {
            Cores::divide().and_then(|cores| soak::soak(how, &places.stage(&cores, Scale::WHOLE), &places.results))
        }
        What::Placement(arguments) => {
            println!("{}", placement::report(&arguments));
            Ok(true)
        }
        What::Node(arguments) => standin_node::serve(&arguments).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything could be measured. A target that is not met is a result and not a failure.
fn run(arguments: &Run) -> Result<bool> {
    let started = Instant::now();
    let started_at = Utc::now();
    let machine = machine::describe();
    let cores = Cores::divide()?;
    let scale = if arguments.quick { Scale::QUICK } else { Scale::WHOLE };
    let stage = arguments.places.stage(&cores, scale);
    if machine.load_average > 0.5 {
        eprintln!("note: others keep this machine busy (load average {}): figures are noise", machine.load_average);
    }
    let mut report = Report {
        started_at: started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
        seconds: 0,
        version: env!("CARGO_PKG_VERSION"),
        commit: commit(),
        quick: arguments.quick,
        rounds: scale.rounds,
        machine,
        cores,
        rows: Vec::new(),
        failures: Vec::new(),
    };
    let wanted = |target: &&Target| arguments.targets.is_empty() || arguments.targets.contains(&target.name);
    for target in ALL.iter().filter(wanted) {
        measure(target, &stage, &mut report);
    }
    report.seconds = started.elapsed().as_secs();
    let name = format!("{}-{}", started_at.format("%Y-%m-%d-%H%M"), file_name(&report.machine.name));
    let files = write(&report, &arguments.places.results, &name)?;
    println!("\n{}\n{files}", report::table(&report));
    Ok(report.failures.is_empty())
}

fn measure(target: &Target, stage: &Stage, report: &mut Report) {
    let started = Instant::now();
    eprintln!("{}  {}", target.name, target.what);
    match (target.measure)(stage) {
        Ok(rows) => {
            for row in &rows {
                let measured = quantity(row.measured, row.unit);
                eprintln!("      {}: {measured} ({}, target {})", row.what, verdict(row.met), row.bound.text());
            }
            report.rows.extend(rows);
        }
        Err(error) => {
            eprintln!("      NOT MEASURED: {error:#}");
            report.failures.push(Failure { target: target.name, reason: format!("{error:#}") });
        }
    }
    eprintln!("      {:.0} s", started.elapsed().as_secs_f64());
}

/// Writes both forms; says where they are.
fn write(report: &Report, results: &Path, name: &str) -> Result<String> {
    std::fs::create_dir_all(results).with_context(|| results.display().to_string())?;
    let (json, page) = (results.join(format!("{name}.json")), results.join(format!("{name}.html")));
    std::fs::write(&json, serde_json::to_string_pretty(report)?)?;
    std::fs::write(&page, html::page(report))?;
    Ok(format!("{}\n{}", json.display(), page.display()))
}

/// A machine's name, as a file's name may hold it.
fn file_name(machine: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    if machine.is_empty() { "machine".to_owned() } else { machine.chars().map(plain).collect() }
}

/// What was measured, where this is a clone.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
