//! C2: the first call when no sandbox is kept ready, against the calls that a container costs at the Engine's API.

use anyhow::Result;

use super::first_call::{Cold, first_calls};
use crate::engine::Engine;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, median_of};
use crate::stage::{Stage, interleave};

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::whole(stage, &[("SANDBOX_BLANKS", "0")])?;
    let program = Program::native(stage)?;
    let mut cold = Cold::deploy(&platform, &program, stage.scale.first_calls + 1, 0)?;
    let mut engine = Engine::connect()?;
    cold.first_call()?;
    engine.run(stage, &program)?;
    let (ours, raw) = interleave(stage.scale.first_calls, || cold.first_call(), || engine.run(stage, &program))?;
    let all: Vec<_> = raw.iter().map(|calls| calls.all).collect();
    let until_done: Vec<_> = raw.iter().map(|calls| calls.until_done).collect();
    let without_removal = median_of(&until_done);
    let row = Row::ratio(
        "C2",
        "native, empty pool: first call / raw API",
        format!(
            "The first call ever of a function that has no sandbox, with SANDBOX_BLANKS=0, on an open connection; a \
             function for each call. Theirs: create, start, wait and remove of a container of {} that runs the \
             same program, --network none, by the Engine's API on its Unix socket, in turn with ours.",
            program.image
        ),
        (first_calls("first call", &ours), first_calls("create, start, wait, remove", &all)),
        Bound::AtMost(1.1),
    );
    Ok(vec![row.note(format!("create, start and wait without the removal: {:.1} ms", without_removal * 1e3))])
}
