//! C3: many different functions, none with a sandbox, called in the same moment, against one `docker run` after the
//! other.

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::first_call::first_calls;
use crate::engine::docker_run;
use crate::http1::Connection;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side, median_of};
use crate::stage::Stage;

/// Memory of each function, in MiB, so that all fit.
const MEMORY_MB: u32 = 16;

/// Runtimes other than the native one, for which nothing is kept ready.
const OTHERS: [&str; 2] = ["python", "node"];

/// What stands in their place.
const ABSENT: &str = r#"
priority = 99
detect = [["absent"]]
entrypoints = ["absent"]
[run]
images = ["dartcloud/absent"]
command = ["absent"]
"#;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let count = stage.scale.at_once;
    let (blanks, memory) = (count.to_string(), (count * MEMORY_MB as usize * 2).to_string());
    let runtimes = only_native(stage)?.display().to_string();
    let settings = [
        ("SANDBOX_BLANKS", &*blanks),
        ("SANDBOX_BLANKS_MB", &memory),
        ("SANDBOX_MEMORY_MB", &memory),
        ("SANDBOX_BLANK_MEMORY_MB", "16"),
        ("RUNTIMES_DIR", &runtimes),
    ];
    let platform = Platform::whole(stage, &settings)?;
    let program = Program::native(stage)?;
    let archive = program.archive()?;
    for number in 0..count {
        platform.upload(&format!("native-{number}"), &archive, &json!({"memory_mb": MEMORY_MB}))?;
    }
    let containers = (0..stage.scale.first_calls).map(|_| docker_run(stage, &program));
    let containers = containers.collect::<Result<Vec<_>>>()?;
    platform.settle(count)?;
    let (elapsed, times) = all_at_once(&platform, count)?;
    let one = median_of(&containers);
    let ours = Side {
        quantiles: times.quantiles(),
        ..Side::new(format!("{count} at once"), "functions/s", vec![count as f64 / elapsed.as_secs_f64()])
    };
    let theirs = Side::new("docker run, one by one", "functions/s", vec![1.0 / one]);
    let row = Row::ratio(
        "C3",
        format!("{count} functions at once, all cold"),
        format!(
            "{count} different native functions without a sandbox, {MEMORY_MB} MiB each, called once each on a \
             connection of its own in the same moment, until the last answer. The node has that many blank \
             sandboxes of native functions ready (SANDBOX_BLANKS), of others none. \
             Theirs: the median of {} `docker run --rm --network none` of the same program, one after the other. \
             One round: each function has only one first call.",
            containers.len()
        ),
        (ours, theirs),
        Bound::AtLeast(100.0),
    );
    let docker = first_calls("", &containers).median / 1e3;
    Ok(vec![row.note(format!(
        "all answered with 200; the last after {:.0} ms, p50 {:.0} ms; one docker run takes {docker:.0} ms",
        elapsed.as_secs_f64() * 1e3,
        times.at(0.5) / 1e3,
    ))])
}

/// Runtimes that have no blanks but native ones: the other images are not there.
fn only_native(stage: &Stage) -> Result<PathBuf> {
    let folder = stage.folder()?;
    for name in OTHERS {
        std::fs::write(folder.join(format!("{name}.toml")), ABSENT)?;
    }
    Ok(folder)
}

fn all_at_once(platform: &Platform, count: usize) -> Result<(Duration, crate::stats::Latencies)> {
    let gate = Barrier::new(count + 1);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..count)
            .map(|number| {
                let (call, gate) = (platform.call(&format!("native-{number}")), &gate);
                scope.spawn(move || {
                    let connection = Connection::open(&call.address);
                    gate.wait();
                    call.once(&mut connection?)
                })
            })
            .collect();
        gate.wait();
        let start = Instant::now();
        let answers: Vec<_> = calls.into_iter().map(|call| call.join().expect("it does not panic")).collect();
        let elapsed = start.elapsed();
        let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        ensure!(failed.is_empty(), "{} of {count} calls failed, the first one: {:#}", failed.len(), failed[0]);
        let times: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
        Ok((elapsed, crate::stats::Latencies::of(&times)))
    })
}
