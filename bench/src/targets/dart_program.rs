//! F4: a genuine Dart program, compiled ahead of time, by the file contract, against running it bare.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::bare::Bare;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::stats::Latencies;

/// Calls before the first that counts.
const WARM_UP: usize = 3;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::dart(stage)?;
    let platform = Platform::whole(stage, &[])?;
    platform.deploy("sass", &program, &json!({}))?;
    let mut bare = Bare::in_container(stage, &program)?;
    let (call, calls) = (platform.call("sass"), stage.scale.slow_calls());
    call.one_by_one(WARM_UP, Duration::ZERO)?;
    bare.calls(WARM_UP, Duration::ZERO)?;
    let (ours, theirs) = interleave(
        stage.scale.rounds,
        || call.one_by_one(calls, Duration::ZERO),
        || bare.calls(calls, Duration::ZERO).map(Latencies::new),
    )?;
    let row = Row::ratio(
        "F4",
        "Dart AOT by the file contract: p50",
        format!(
            "Dart Sass (npm: sass-embedded-linux-x64 1.108.2) compiles a rule; a few lines of shell start it and \
             write the result, on both sides. Ours: a POST to a private function through gateway and agent, warm, \
             back to back. Theirs: the same script spawned by bench/bare.c inside one long-lived container of {} \
             without seccomp, memory or CPU limits.",
            program.image
        ),
        (Side::p50("gateway and agent", &ours), Side::p50("bare program", &theirs)),
        Bound::AtMost(1.15),
    );
    Ok(vec![row])
}
