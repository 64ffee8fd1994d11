//! P1: how many requests the edge serves on one core with everything on, against nginx that only passes them on.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::http1::Address;
use crate::load::{Aim, closed};
use crate::nginx::Nginx;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};

/// Connections of the load.
const CONNECTIONS: usize = 32;

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let platform = Platform::edge(stage, stage.folder()?)?;
    platform.deploy("private", &Program::native(stage)?, &json!({"concurrency": 1000}))?;
    let upstream = platform.upstream.as_ref().context("the edge has a stand-in")?;
    let nginx = Nginx::start(stage, &Address::Unix(upstream.socket.clone()))?;
    let ours = platform.get_private("private");
    let theirs = Aim::new(nginx.address.clone(), ours.request.to_vec());
    let round = |aim: &Aim, process: u32| closed(aim, CONNECTIONS, stage.scale.round, &[process]);
    // Once each, not counted: connections are dialled, memory is touched.
    round(&ours, platform.gateway())?;
    round(&theirs, nginx.id())?;
    let (ours, theirs) =
        interleave(stage.scale.rounds, || round(&ours, platform.gateway()), || round(&theirs, nginx.id()))?;
    let rate = |side: &[crate::load::Sample]| Side::per_second("", side).median;
    let seen = format!("served meanwhile: {:.0} req/s by ours, {:.0} by nginx", rate(&ours), rate(&theirs));
    let row = Row::ratio(
        "P1",
        "edge: requests per core",
        "A GET of a private function over 32 kept connections. Ours: dartcloud-gateway with one edge thread checks \
         the JWT (HS256), counts the rate, routes, counts the function's concurrency, gives a request id, and \
         forwards over a link connection to a stand-in node. Theirs: nginx, one worker, proxy_pass with kept \
         connections to the same stand-in over a Unix socket, no log, the same request bytes. Both on the same \
         core in turn, load and stand-in on others. Requests per core is requests by the CPU time of the proxy's \
         processes.",
        (Side::per_core("gateway", &ours), Side::per_core("nginx", &theirs)),
        Bound::AtLeast(1.0),
    );
    Ok(vec![row.note(seen).note("the aim beyond the target is 1.2")])
}
