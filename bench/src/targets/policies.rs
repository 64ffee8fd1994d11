//! P2: what the edge's policies cost: a private function with its owner's token, against a public one.

use anyhow::Result;
use serde_json::json;

use crate::load::{Aim, closed};
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};

/// Connections of the load.
const CONNECTIONS: usize = 32;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::edge(stage, stage.folder()?)?;
    let program = Program::native(stage)?;
    platform.deploy("private", &program, &json!({"concurrency": 1000}))?;
    platform.deploy("public", &program, &json!({"concurrency": 1000, "access": "public"}))?;
    let (on, off) = (platform.get_private("private"), platform.get_public("public"));
    let round = |aim: &Aim| closed(aim, CONNECTIONS, stage.scale.round, &[platform.gateway()]);
    round(&on)?;
    round(&off)?;
    let (on, off) = interleave(stage.scale.rounds, || round(&on), || round(&off))?;
    let row = Row::ratio(
        "P2",
        "edge: requests per core, policies on / off",
        "The same gateway, one thread on a core of its own, a stand-in node, 32 kept connections. On: a private \
         function with its owner's JWT, which is checked; the rate counts for the user. Off: a public function \
         without a token; the rate counts for the address. The gate, routing, request id, rate and concurrency \
         cannot be switched off and are in both; no limit is hit in either. The requests differ by the \
         Authorization header.",
        (Side::per_core("private, JWT", &on), Side::per_core("public", &off)),
        Bound::AtLeast(0.95),
    );
    Ok(vec![row])
}
