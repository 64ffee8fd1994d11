//! F1: one call by the file contract, at the agent and through the gateway, against the bare loop.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::bare::Bare;
use crate::machine::{cpu_time, cpu_times};
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::standin_gateway::Agent;
use crate::stats::Latencies;

/// Calls before the first that counts.
const WARM_UP: usize = 50;

const COMPARED: &str = "A native no-op (bench/noop.c) that reads /request.json and writes /result.json, warm, one \
    call after the other. Theirs: bench/bare.c writes the request, spawns the same program, waits, reads the \
    result; files in memory, no sandbox, no network, no record.";

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    Ok(vec![at_the_agent(stage)?, through_the_gateway(stage)?])
}

fn at_the_agent(stage: &Stage) -> Result<Row> {
    let program = Program::native(stage)?;
    let mut agent = Agent::start(stage, &stage.cores.all, &program, "native")?;
    let mut bare = Bare::here(stage, &stage.cores.all, &program.folder.join("main"))?;
    let (calls, process) = (stage.scale.calls, agent.id());
    let mut round = |calls: usize| -> Result<Latencies> {
        let times: Vec<Duration> = (0..calls).map(|_| agent.call()).collect::<Result<_>>()?;
        Ok(Latencies::of(&times))
    };
    round(WARM_UP)?;
    bare.calls(WARM_UP, Duration::ZERO)?;
    let before = cpu_time(process)?;
    let (ours, theirs) =
        interleave(stage.scale.rounds, || round(calls), || bare.calls(calls, Duration::ZERO).map(Latencies::new))?;
    let cpu = cpu_time(process)?.saturating_sub(before);
    let ours = Side::p50("agent", &ours).with_cpu(cpu, calls * stage.scale.rounds);
    Ok(Row::ratio(
        "F1",
        "file contract at the agent: p50",
        format!(
            "{COMPARED} Ours: over one work connection of the link, on which the benchmark is the gateway; records \
             are written and taken by the benchmark. Nothing is pinned but the benchmark."
        ),
        (ours, Side::p50("bare loop", &theirs)),
        Bound::AtMost(2.5),
    ))
}

fn through_the_gateway(stage: &Stage) -> Result<Row> {
    let program = Program::native(stage)?;
    let platform = Platform::whole(stage, &[])?;
    platform.deploy("noop", &program, &json!({}))?;
    let call = platform.call("noop");
    let mut bare = Bare::here(stage, &stage.cores.all, &program.folder.join("main"))?;
    let calls = stage.scale.calls;
    call.one_by_one(WARM_UP, Duration::ZERO)?;
    bare.calls(WARM_UP, Duration::ZERO)?;
    let before = cpu_times(&platform.both())?;
    let (ours, theirs) = interleave(
        stage.scale.rounds,
        || call.one_by_one(calls, Duration::ZERO),
        || bare.calls(calls, Duration::ZERO).map(Latencies::new),
    )?;
    let cpu = cpu_times(&platform.both())?.saturating_sub(before);
    let ours = Side::p50("gateway and agent", &ours).with_cpu(cpu, calls * stage.scale.rounds);
    Ok(Row::ratio(
        "F1",
        "file contract through the gateway: p50",
        format!(
            "{COMPARED} Ours: a POST of a small JSON body to a private function on one kept connection, through \
             gateway and agent as two programs, JWT and all; records go to SQLite. Nothing is pinned but the \
             benchmark."
        ),
        (ours, Side::p50("bare loop", &theirs)),
        Bound::AtMost(4.0),
    ))
}
