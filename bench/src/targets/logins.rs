//! A1: what calls suffer while four clients log in without end: a password hash keeps a core busy for tens of
//! milliseconds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::http1::Connection;
use crate::load::{Aim, Sample, paced};
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};
use crate::stats::Latencies;

/// Clients that log in.
const LOGINS: usize = 4;

/// Calls a second, and their connections: well below what two cores can do, so that only the logins make a difference.
const RATE: f64 = 100.0;
const CONNECTIONS: usize = 8;

/// Rounds are longer here: p99 needs calls.
const LONGER: u32 = 2;

/// Status of a login beyond the queue of password hashes.
const TOO_MANY: u16 = 429;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::whole(stage, &[])?;
    platform.deploy("noop", &Program::native(stage)?, &json!({"concurrency": 100}))?;
    let (call, login) = (platform.call("noop"), platform.login());
    let round = || paced(&call, CONNECTIONS, RATE, stage.scale.round * LONGER);
    round()?;
    let mut rates = Vec::new();
    let (with, without) = interleave(
        stage.scale.rounds,
        || {
            let (sample, logins) = while_logging_in(&login, round)?;
            rates.push(logins);
            Ok(sample)
        },
        round,
    )?;
    let side = |name: &str, samples: &[Sample]| {
        let rounds = samples.iter().map(|sample| sample.latencies.at(0.99)).collect();
        let all = Latencies::joined(samples.iter().map(|sample| &sample.latencies));
        Side { quantiles: all.quantiles(), ..Side::new(name, "µs", rounds) }
    };
    let row = Row::ratio(
        "A1",
        "p99 of calls during logins / without",
        format!(
            "{RATE} calls a second of a native no-op by the file contract, spread evenly, through gateway and \
             agent on all cores; the p99 of each round. With: {LOGINS} clients that each log in again as soon as \
             they are answered. Without: nothing else. In turn."
        ),
        (side("with logins", &with), side("without", &without)),
        Bound::AtMost(2.0),
    );
    Ok(vec![row.note(format!("{:.0} logins a second meanwhile", crate::stats::median(&rates)))])
}

/// What `measured` gives while clients log in, and how many logins there were in a second.
fn while_logging_in(login: &Aim, measured: impl FnOnce() -> Result<Sample>) -> Result<(Sample, f64)> {
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let start = Instant::now();
    let sample = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..LOGINS).map(|_| scope.spawn(|| log_in_until(login, &over, &count))).collect();
        let sample = measured();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("it does not panic")?;
        }
        sample
    })?;
    Ok((sample, count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()))
}

fn log_in_until(login: &Aim, over: &AtomicBool, count: &AtomicUsize) -> Result<()> {
    let mut connection = Connection::open(&login.address)?;
    while !over.load(Ordering::Relaxed) {
        match connection.ask(&login.request)?.status {
            200 => {
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Refused for want of room, which is an answer, too; the next attempt may come at once.
            TOO_MANY => std::thread::sleep(Duration::from_millis(1)),
            status => anyhow::bail!("a login was answered {status}"),
        }
    }
    Ok(())
}
