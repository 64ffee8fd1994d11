//! P4: how much later an answer comes with the edge in between, against how much later with nginx in between.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::http1::Address;
use crate::load::Aim;
use crate::nginx::Nginx;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::Stage;
use crate::stats::Latencies;

/// Calls of a round, in calls of a slower thing.
const TIMES: usize = 10;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::edge(stage, stage.folder()?)?;
    platform.deploy("private", &Program::native(stage)?, &json!({"concurrency": 1000}))?;
    let upstream = platform.upstream.as_ref().context("the edge has a stand-in")?;
    let nginx = Nginx::start(stage, &Address::Unix(upstream.socket.clone()))?;
    let ours = platform.get_private("private");
    let theirs = Aim::new(nginx.address.clone(), ours.request.to_vec());
    let direct = Aim::new(Address::Tcp(upstream.address), ours.request.to_vec());
    let round = |aim: &Aim| aim.one_by_one(stage.scale.calls * TIMES, Duration::ZERO);
    for aim in [&ours, &theirs, &direct] {
        round(aim)?;
    }
    let mut samples: [Vec<Latencies>; 3] = Default::default();
    for _ in 0..stage.scale.rounds {
        for (aim, side) in [&ours, &theirs, &direct].into_iter().zip(&mut samples) {
            side.push(round(aim)?);
        }
    }
    let [ours, theirs, direct] = samples;
    let added = |name: &str, side: &[Latencies]| {
        let rounds = side.iter().zip(&direct).map(|(with, without)| with.at(0.5) - without.at(0.5)).collect();
        Side { quantiles: Latencies::joined(side).quantiles(), ..Side::new(name, "µs", rounds) }
    };
    let straight = Side::p50("direct", &direct).median;
    let row = Row::ratio(
        "P4",
        "edge: added p50 at one connection",
        "One kept TCP connection, one GET after the other, as in P1 with everything on. Added is the p50 through the \
         proxy less the p50 of the same request straight to the stand-in over TCP, round by round. Ours: \
         dartcloud-gateway; theirs: nginx as a plain proxy. The curve shows the whole latencies.",
        (added("gateway", &ours), added("nginx", &theirs)),
        Bound::AtMost(2.0),
    );
    Ok(vec![row.note(format!("p50 straight to the stand-in: {straight:.1} µs"))])
}
