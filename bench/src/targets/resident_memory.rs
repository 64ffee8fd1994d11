//! M1: the memory that gateway and agent hold under load, that a runner holds, and that an idle sandbox is charged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::engine::container_pids;
use crate::load::closed;
use crate::machine::{cgroup_mb, own_mb, resident_mb};
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::Stage;
use crate::stats::median;

/// Connections of the load.
const CONNECTIONS: usize = 32;

/// How often memory is read.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::whole(stage, &[])?;
    platform.deploy("noop", &Program::native(stage)?, &json!({"concurrency": 100}))?;
    let call = platform.call("noop");
    let mut highest = Vec::new();
    for _ in 0..stage.scale.rounds {
        let over = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(&platform, &over));
            let load = closed(&call, CONNECTIONS, stage.scale.round, &[]);
            over.store(true, Ordering::Relaxed);
            let seen = watch.join().expect("it does not panic");
            load.and(seen)
        })?;
        highest.push(seen);
    }
    let label = platform.node_label()?;
    platform.settle(0)?;
    let runners = container_pids(&label)?;
    let runner = runners.iter().map(|pid| resident_mb(*pid)).collect::<Result<Vec<_>>>()?;
    let own = runners.iter().map(|pid| own_mb(*pid)).collect::<Result<Vec<_>>>()?;
    let programs = own_mb(platform.gateway())? + own_mb(platform.node())?;
    let charged = runners.iter().map(|pid| cgroup_mb(*pid)).collect::<Result<Vec<_>>>()?;
    let least = charged.iter().copied().min_by(f64::total_cmp).context("no sandbox is there")?;
    Ok(vec![
        Row::value(
            "M1",
            "gateway and agent under load",
            "VmRSS of dartcloud-gateway and dartcloud-node-agent together while 32 connections call a native no-op \
             by the file contract: the highest of each round.",
            Side::new("resident", "MB", highest),
            Bound::AtMost(32.0),
        )
        .note(format!("{programs:.1} MB of it their own at rest, the rest pages of their files")),
        Row::value(
            "M1",
            "runner",
            "VmRSS of the runner, which is PID 1 of each sandbox, after that load; each sandbox is a round.",
            Side::new("resident", "MB", runner),
            Bound::AtMost(1.0),
        )
        .note(format!("{:.2} MB of it its own, the rest pages of its file, which all runners share", median(&own))),
        Row::value(
            "M1",
            "blank or idle sandbox",
            "What the smallest sandbox of the node is charged by its memory cgroup after that load, page cache and \
             kernel memory included: a blank one where a pool keeps some, else an idle one of the function.",
            Side::new("charged", "MB", vec![least]),
            Bound::AtMost(3.0),
        )
        .note(format!(
            "{} sandboxes, up to {:.1} MB",
            charged.len(),
            charged.iter().copied().fold(0.0, f64::max)
        )),
    ])
}

/// The highest sum until `over`.
fn watch(platform: &Platform, over: &AtomicBool) -> Result<f64> {
    let mut highest: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        highest = highest.max(resident_mb(platform.gateway())? + resident_mb(platform.node())?);
        std::thread::sleep(LOOK);
    }
    Ok(highest)
}
