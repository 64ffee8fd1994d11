//! F2: how many calls a second the file contract makes on two cores, against a bare loop on two threads.

use anyhow::Result;
use serde_json::json;

use crate::bare::Bare;
use crate::load::closed;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};

/// Connections of the load: enough that both cores always have a call to work on.
const CONNECTIONS: usize = 8;

/// Threads of the bare loop.
const THREADS: usize = 2;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::native(stage)?;
    let platform = Platform::on_cores(stage, &stage.cores.two, &[])?;
    platform.deploy("noop", &program, &json!({"concurrency": 100}))?;
    let call = platform.call("noop");
    let mut bare = Bare::here(stage, &stage.cores.two, &program.folder.join("main"))?;
    let round = || closed(&call, CONNECTIONS, stage.scale.round, &platform.both());
    round()?;
    let (ours, theirs) = interleave(stage.scale.rounds, round, || bare.per_second(stage.scale.round, THREADS))?;
    let row = Row::ratio(
        "F2",
        "file contract on two cores: calls a second",
        "The native no-op, warm. Ours: 8 kept connections through gateway and agent, both on two cores; CPU a \
         request is theirs, without the sandboxes'. Theirs: bench/bare.c with two threads on the same two cores. \
         The Engine may put sandboxes on any core, and on a machine of two cores the load shares them, at our \
         cost.",
        (Side::per_second("gateway and agent", &ours), Side::new("bare loop", "calls/s", theirs)),
        Bound::AtLeast(0.5),
    );
    Ok(vec![row])
}
