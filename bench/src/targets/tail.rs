//! T1: how far p99 is from p50 at 70 % of the peak, for the edge alone and for calls by the file contract; and the same of
//! nginx before the same node, which says how much of it is the machine's and the load's own.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::http1::Address;
use crate::load::{Aim, Sample, paced, unpaced};
use crate::nginx::Nginx;
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

const TARGET: Bound = Bound::AtMost(5.0);

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::native(stage)?;
    let edge = Platform::edge(stage, stage.folder()?)?;
    edge.deploy("private", &program, &json!({"concurrency": 1000}))?;
    let ours = edge.get_private("private");
    let upstream = edge.upstream.as_ref().context("the edge has a stand-in")?;
    let nginx = Nginx::start(stage, &Address::Unix(upstream.socket.clone()))?;
    let theirs = Aim::new(nginx.address.clone(), ours.request.to_vec());
    let mut rows = vec![
        one(stage, &ours, "edge", "the edge and a stand-in node, as in P1", TARGET)?,
        one(stage, &theirs, "nginx", "nginx and the same stand-in, as in P1", Bound::Shown)?,
    ];
    drop((nginx, edge));
    let whole = Platform::whole(stage, &[])?;
    whole.deploy("noop", &program, &json!({"concurrency": 100}))?;
    let what = "a native no-op by the file contract, through gateway and agent on all cores";
    rows.push(one(stage, &whole.call("noop"), "file contract", what, TARGET)?);
    Ok(rows)
}

fn one(stage: &Stage, aim: &Aim, name: &str, what: &str, bound: Bound) -> Result<Row> {
    unpaced(aim, CONNECTIONS, stage.scale.round)?;
    let peak: Vec<_> =
        (0..stage.scale.rounds).map(|_| unpaced(aim, CONNECTIONS, stage.scale.round)).collect::<Result<_>>()?;
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
            "Calls of {what}. The peak is what 32 connections, with a thread each, get that send as fast as answers \
             come. Then 70 % of it by the same threads, spread evenly over time whether or not earlier calls were \
             answered; a call's time counts from when it was due, if its connection was still busy then. Of each \
             round p99 and p50."
        ),
        (Side { quantiles: all, ..at(0.99, "p99") }, at(0.5, "p50")),
        bound,
    );
    Ok(row.note(format!("peak {peak:.0} calls/s; asked for {rate:.0}, kept {kept:.0}")))
}
