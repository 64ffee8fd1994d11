//! T1: how far p99 is from p50 at 70 % of the peak, for the edge alone and for calls by the file contract.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::load::{Aim, Sample, closed, paced};
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::Stage;
use crate::stats::Latencies;

/// The share of the peak.
const SHARE: f64 = 0.7;

/// The share of the rate that the load has to keep.
const KEPT: f64 = 0.97;

/// Connections that find the peak, and that are paced.
const CONNECTIONS: usize = 32;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::native(stage)?;
    let edge = Platform::edge(stage, stage.folder()?)?;
    edge.deploy("private", &program, &json!({"concurrency": 1000}))?;
    let at_the_edge = one(stage, &edge.get_private("private"), "edge", "the edge and a stand-in node, as in P1")?;
    drop(edge);
    let whole = Platform::whole(stage, &[])?;
    whole.deploy("noop", &program, &json!({"concurrency": 100}))?;
    let what = "a native no-op by the file contract, through gateway and agent on all cores";
    Ok(vec![at_the_edge, one(stage, &whole.call("noop"), "file contract", what)?])
}

fn one(stage: &Stage, aim: &Aim, name: &str, what: &str) -> Result<Row> {
    closed(aim, CONNECTIONS, stage.scale.round, &[])?;
    let peak: Vec<_> =
        (0..stage.scale.rounds).map(|_| closed(aim, CONNECTIONS, stage.scale.round, &[])).collect::<Result<_>>()?;
    let peak = Side::per_second("peak", &peak).median;
    let rate = peak * SHARE;
    let samples: Vec<Sample> =
        (0..stage.scale.rounds).map(|_| paced(aim, CONNECTIONS, rate, stage.scale.round)).collect::<Result<_>>()?;
    let kept = Side::per_second("", &samples).median;
    // With fewer, calls pile up in the load itself, and p50 is as bad as p99.
    ensure!(
        kept >= rate * KEPT,
        "the load kept {kept:.0} calls/s of {rate:.0}: the machine is too busy with other things"
    );
    let at = |quantile: f64, name: &str| {
        let rounds = samples.iter().map(|sample| sample.latencies.at(quantile)).collect();
        Side::new(name, "µs", rounds)
    };
    let all = Latencies::joined(samples.iter().map(|sample| &sample.latencies)).quantiles();
    let row = Row::ratio(
        "T1",
        format!("{name}: p99 / p50 at 70 % of the peak"),
        format!(
            "Calls of {what}. The peak is what 32 connections get that send as fast as answers come. Then 70 % of \
             it, spread evenly over time whether or not earlier calls were answered; a call's time counts from \
             when it was due, if its connection was still busy then. Of each round p99 and p50."
        ),
        (Side { quantiles: all, ..at(0.99, "p99") }, at(0.5, "p50")),
        Bound::AtMost(5.0),
    );
    Ok(row.note(format!("peak {peak:.0} calls/s; asked for {rate:.0}, kept {kept:.0}")))
}
