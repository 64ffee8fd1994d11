//! FLEET: what a second and a third node add to the calls that are answered. On one machine they share its processors, so
//! a node's limit is its seats: the memory that its sandboxes may have, of a function that rests.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::load::{Aim, Sample, closed};
use crate::machine::Busy;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::Stage;
use crate::stats::median;

/// Nodes of the largest fleet.
const NODES: usize = 3;

/// Sandboxes that a node has room for, and the memory of each, in MiB.
const SEATS: usize = 8;
const SEAT_MB: usize = 64;

/// Connections of the load, which is the same for each fleet: a third more than all seats, so that none is ever empty.
const CONNECTIONS: usize = NODES * SEATS * 4 / 3;

/// The share of what as many nodes would answer at best.
const NEARLY: f64 = 0.9;

/// How busy the processors may be, as a share, for seats to be the limit.
const IDLE_ENOUGH: f64 = 0.85;

/// So many nodes, and a function at home there.
struct House {
    platform: Platform,
    call: Aim,
    joined: Vec<Duration>,
}

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let houses = (1..=NODES).map(|nodes| house(stage, nodes)).collect::<Result<Vec<_>>>()?;
    let round = |house: &House| closed(&house.call, CONNECTIONS, stage.scale.round, &house.platform.all());
    for house in &houses {
        // Starts as many sandboxes as there are seats.
        round(house)?;
        round(house)?;
    }
    let (mut samples, mut busy) = (vec![Vec::new(); NODES], 0.0_f64);
    for _ in 0..stage.scale.rounds {
        for (house, samples) in houses.iter().zip(&mut samples) {
            let before = Busy::now()?;
            samples.push(round(house)?);
            busy = busy.max(Busy::now()?.share_since(&before));
        }
    }
    ensure!(busy < IDLE_ENOUGH, "the processors were {:.0} % busy, so seats are not the limit here", busy * 100.0);
    let mut rows: Vec<_> = (2..=NODES).map(|nodes| row(nodes, &samples, busy)).collect();
    let joined: Vec<_> = houses.iter().flat_map(|house| &house.joined).map(Duration::as_secs_f64).collect();
    rows.push(Row::value(
        "FLEET",
        "from `node join` to linked",
        "From the start of `dartcloud node join` with a fresh token, in an empty data directory, until the gateway \
             lists the node as linked: key, certificate, Engine and link.",
        Side::new(format!("{} joins", joined.len()), "s", joined),
        Bound::AtMost(10.0),
    ));
    Ok(rows)
}

fn row(nodes: usize, samples: &[Vec<Sample>], busy: f64) -> Row {
    let side = |nodes: usize| {
        let name = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        Side::per_second(name, &samples[nodes - 1])
    };
    let ideal = |nodes: usize| (nodes * SEATS) as f64 / 0.1;
    let reached = median(&samples[nodes - 1].iter().map(|sample| sample.per_second).collect::<Vec<_>>());
    Row::ratio(
        "FLEET",
        format!("calls a second: {nodes} nodes / 1"),
        format!(
            "A gateway and {nodes} agents that joined it, against a gateway and one; in turn, with the same load of \
             {CONNECTIONS} connections that call one function as fast as answers come. All are on this machine, so a \
             node's limit is not the processor: each may hold {SEATS} sandboxes (SANDBOX_MEMORY_MB), and a call rests \
             for 100 ms in its own."
        ),
        (side(nodes), side(1)),
        Bound::AtLeast(NEARLY * nodes as f64),
    )
    .note(format!("{reached:.0} calls/s of {:.0} that the seats allow", ideal(nodes)))
    .note(format!("the processors were at most {:.0} % busy in any round", busy * 100.0))
}

fn house(stage: &Stage, nodes: usize) -> Result<House> {
    let memory = (SEATS * SEAT_MB).to_string();
    let settings = [("SANDBOX_MEMORY_MB", memory.as_str()), ("SANDBOX_BLANKS", "0")];
    let (platform, joined) = Platform::joined(stage, nodes, &settings)?;
    let limits = json!({"concurrency": 1000, "memory_mb": SEAT_MB});
    platform.deploy("rest", &Program::rest(stage)?, &limits)?;
    let call = platform.get_private("rest");
    Ok(House { platform, call, joined })
}
