//! C1: the first call of a function that has no sandbox, against `docker run` of the same program.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::bare::Bare;
use crate::engine::docker_run;
use crate::http1::Connection;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::stats::Latencies;

/// Blank sandboxes that the node keeps: two for each of the images of Debian, Python and Node.js.
const BLANKS: usize = 6;

const COMPARED: &str = "The first call ever of a function that has no sandbox, on a connection that is open, when the \
    node's pool is full and at rest; a function for each call. ";

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::whole(stage, &[("SANDBOX_BLANKS", "2")])?;
    let mut rows = Vec::new();
    for (program, bound) in [(Program::native(stage)?, 0.01), (Program::dart(stage)?, 0.05)] {
        rows.push(against_docker(stage, &platform, &program, Bound::AtMost(bound))?.0);
    }
    for program in [Program::python(stage)?, Program::node(stage)?] {
        let (shown, ours) = against_docker(stage, &platform, &program, Bound::Shown)?;
        rows.push(against_bare(stage, &program, ours)?);
        rows.push(shown);
    }
    Ok(rows)
}

fn against_docker(stage: &Stage, platform: &Platform, program: &Program, bound: Bound) -> Result<(Row, Side)> {
    let (ours, theirs) = both_sides(stage, platform, program)?;
    let sides = (first_calls("first call", &ours), first_calls("docker run", &theirs));
    let row = Row::ratio(
        "C1",
        format!("{}: first call / docker run", program.language),
        format!(
            "{COMPARED}Theirs: `docker run --rm --network none` of the same program in {}, from the start of the \
             command to its end, in turn with ours.",
            program.image
        ),
        sides.clone(),
        bound,
    );
    Ok((row, sides.0))
}

/// A first call and a `docker run` in turn.
fn both_sides(stage: &Stage, platform: &Platform, program: &Program) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let mut cold = Cold::deploy(platform, program, stage.scale.first_calls + 1, BLANKS)?;
    // Once each, not counted: files come from the disk.
    cold.first_call()?;
    docker_run(stage, program)?;
    interleave(stage.scale.first_calls, || cold.first_call(), || docker_run(stage, program))
}

/// Functions that nobody has called.
pub(super) struct Cold<'a> {
    platform: &'a Platform,
    blanks: usize,
    names: std::vec::IntoIter<String>,
}

impl<'a> Cold<'a> {
    /// Deploys `count` of the same program; the node keeps at least so many blanks.
    pub(super) fn deploy(platform: &'a Platform, program: &Program, count: usize, blanks: usize) -> Result<Self> {
        let archive = program.archive()?;
        let names: Vec<_> = (0..count).map(|number| format!("{}-{number}", program.slug())).collect();
        for name in &names {
            platform.upload(name, &archive, &json!({}))?;
        }
        Ok(Self { platform, blanks, names: names.into_iter() })
    }

    /// Calls the next one, when the node's pool has come to rest.
    pub(super) fn first_call(&mut self) -> Result<Duration> {
        self.platform.settle(self.blanks)?;
        let call = self.platform.call(&self.names.next().context("all were called")?);
        call.once(&mut Connection::open(&call.address)?)
    }
}

/// Each call is a round.
pub(super) fn first_calls(name: &str, times: &[Duration]) -> Side {
    Side::new(name, "µs", times.iter().map(|time| time.as_secs_f64() * 1e6).collect())
}

fn against_bare(stage: &Stage, program: &Program, ours: Side) -> Result<Row> {
    let mut bare = Bare::in_container(stage, program)?;
    bare.calls(1, Duration::ZERO)?;
    let rounds =
        (0..stage.scale.rounds).map(|_| bare.calls(stage.scale.slow_calls(), Duration::ZERO).map(Latencies::new));
    let theirs = Side::p50("bare interpreter", &rounds.collect::<Result<Vec<_>>>()?);
    Ok(Row::ratio(
        "C1",
        format!("{}: first call / bare start", program.language),
        format!(
            "{COMPARED}Theirs: `{}` spawned by bench/bare.c inside one long-lived container of {}, as in F3.",
            program.command.join(" "),
            program.image
        ),
        (ours, theirs),
        Bound::AtMost(1.0),
    ))
}
