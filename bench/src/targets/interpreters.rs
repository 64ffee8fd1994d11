//! F3: Python and Node.js by the file contract, warm, against the bare interpreter of the same image.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::bare::Bare;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::stats::Latencies;

/// What a caller does between two calls: long enough that whatever is made ready beforehand is ready.
const THINK: Duration = Duration::from_millis(100);

/// Calls before the first that counts.
const WARM_UP: usize = 3;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::whole(stage, &[])?;
    let mut rows = Vec::new();
    for program in [Program::python(stage)?, Program::node(stage)?] {
        let name = program.slug();
        platform.deploy(&name, &program, &json!({}))?;
        let mut bare = Bare::in_container(stage, &program)?;
        rows.push(one(stage, &platform, &program, &name, &mut bare, THINK)?);
        rows.push(one(stage, &platform, &program, &name, &mut bare, Duration::ZERO)?);
    }
    Ok(rows)
}

fn one(
    stage: &Stage,
    platform: &Platform,
    program: &Program,
    name: &str,
    bare: &mut Bare,
    pause: Duration,
) -> Result<Row> {
    let (call, calls) = (platform.call(name), stage.scale.slow_calls());
    call.one_by_one(WARM_UP, pause)?;
    bare.calls(WARM_UP, pause)?;
    let (ours, theirs) = interleave(
        stage.scale.rounds,
        || call.one_by_one(calls, pause),
        || bare.calls(calls, pause).map(Latencies::new),
    )?;
    let manner = if pause.is_zero() { "back to back" } else { "100 ms between calls" };
    let row = Row::ratio(
        "F3",
        format!("{} by the file contract, {manner}: p50", program.language),
        format!(
            "A script that reads the request as JSON and writes a small result, one call at a time, {manner}. \
             Ours: a POST to a private function through gateway and agent, warm. Theirs: `{}` of the same file, \
             spawned by bench/bare.c inside one long-lived container of the same image ({}) without seccomp, \
             memory or CPU limits, so that Docker costs nothing; the same environment, exchange files in memory.",
            program.command.join(" "),
            program.image
        ),
        (Side::p50("gateway and agent", &ours), Side::p50("bare interpreter", &theirs)),
        Bound::AtMost(0.5),
    );
    Ok(row.note("the aim beyond the target is 0.2"))
}
