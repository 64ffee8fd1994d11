//! C4: what it costs to freeze and thaw a sandbox, against the Engine's pause; and what a call pays that finds its
//! sandbox frozen.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::engine::{Engine, container_pids, containers};
use crate::freezer::Freezer;
use crate::load::Aim;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::stats::Latencies;

/// How long a sandbox rests before the agent freezes it here, in milliseconds.
const FREEZES_AFTER: &str = "50";

/// Before a call of a sandbox that is not frozen: what frozen ones wait at least.
const PAUSE: Duration = Duration::from_millis(100);

/// Calls before the first that counts.
const WARM_UP: usize = 50;

/// Pauses of the Engine in one round, and how many freezes in the same.
const PAUSES: usize = 5;
const FREEZES: usize = 50;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::native(stage)?;
    let never = Warm::start(stage, &program, "0")?;
    let mut rows = vec![against_pause(stage, &never)?];
    let soon = Warm::start(stage, &program, FREEZES_AFTER)?;
    rows.extend(first_calls(stage, &soon, &never)?);
    Ok(rows)
}

/// A platform with one sandbox, which is warm.
struct Warm {
    // Before the platform, whose end removes what it is of.
    freezer: Freezer,
    container: String,
    call: Aim,
    _platform: Platform,
}

impl Warm {
    fn start(stage: &Stage, program: &Program, freeze_after_ms: &str) -> Result<Self> {
        let settings = [("SANDBOX_BLANKS", "0"), ("SANDBOX_FREEZE_AFTER_MS", freeze_after_ms)];
        let platform = Platform::whole(stage, &settings)?;
        platform.deploy("noop", program, &json!({}))?;
        let call = platform.call("noop");
        call.one_by_one(WARM_UP, Duration::ZERO)?;
        let label = platform.node_label()?;
        let container = containers(&label)?.into_iter().next().context("no sandbox is there")?;
        let pid = container_pids(&label)?.into_iter().next().context("no sandbox runs")?;
        Ok(Self { freezer: Freezer::of(pid)?, container, call, _platform: platform })
    }
}

fn against_pause(stage: &Stage, warm: &Warm) -> Result<Row> {
    let mut engine = Engine::connect()?;
    let (ours, theirs) = interleave(
        stage.scale.rounds,
        || {
            times(FREEZES, || {
                warm.freezer.freeze()?;
                warm.freezer.thaw()
            })
        },
        || times(PAUSES, || engine.pause_and_unpause(&warm.container)),
    )?;
    Ok(Row::ratio(
        "C4",
        "freeze and thaw / pause and unpause",
        "The same idle sandbox, frozen and thawed. Ours: a write each to the open file of its control group's freezer, \
         as the agent does it, by the benchmark. Theirs: `POST …/pause` and `POST …/unpause` on the Engine's socket, on \
         one kept connection.",
        (Side::p50("freezer", &ours), Side::p50("docker pause", &theirs)),
        Bound::AtMost(0.02),
    ))
}

fn times(count: usize, mut one: impl FnMut() -> Result<()>) -> Result<Latencies> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        one()?;
        times.push(start.elapsed());
    }
    Ok(Latencies::of(&times))
}

fn first_calls(stage: &Stage, soon: &Warm, never: &Warm) -> Result<[Row; 2]> {
    let calls = stage.scale.slow_calls();
    let (mut frozen, mut rested, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    let mut connections = (soon.call.open()?, never.call.open()?);
    for _ in 0..stage.scale.rounds {
        let (mut cold, mut idle) = (Vec::new(), Vec::new());
        for _ in 0..calls {
            soon.freezer.wait()?;
            cold.push(soon.call.once(&mut connections.0)?);
            std::thread::sleep(PAUSE);
            idle.push(never.call.once(&mut connections.1)?);
        }
        frozen.push(Latencies::of(&cold));
        rested.push(Latencies::of(&idle));
        warm.push(never.call.one_by_one(stage.scale.calls, Duration::ZERO)?);
    }
    let added = |name: &str, without: &[Latencies]| {
        let more = |(with, without): (&Latencies, &Latencies)| (with.at(0.5) - without.at(0.5)) / 1e3;
        let side = Side::new(name, "ms", frozen.iter().zip(without).map(more).collect());
        Side { quantiles: Latencies::joined(&frozen).quantiles(), ..side }
    };
    let compared = "A POST of a small JSON body to a native no-op of the file contract, through gateway and agent, on a \
         kept connection, when the kernel says that its sandbox is frozen; the p50 of each round. ";
    let p50 = |side: &[Latencies]| Side::p50("", side).median;
    let note = format!(
        "p50: frozen {:.0} µs, warm after as long a rest {:.0} µs, warm back to back {:.0} µs",
        p50(&frozen),
        p50(&rested),
        p50(&warm)
    );
    Ok([
        Row::value(
            "C4",
            "first call to a frozen sandbox: added to a warm p50",
            format!("{compared}Less the p50 of calls one after the other on a platform that never freezes."),
            added("frozen", &warm),
            Bound::AtMost(0.3),
        )
        .note(note),
        Row::value(
            "C4",
            "the same, added to a warm one that rested as long",
            format!("{compared}Less the p50 of calls with 100 ms between them on a platform that never freezes."),
            added("frozen", &rested),
            Bound::AtMost(0.3),
        ),
    ])
}
