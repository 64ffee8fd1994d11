//! P3: what a call of a warm server costs on its way through gateway and agent, against two plain proxies before the
//! same server.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::child::{Child, free_address, pinned};
use crate::http1::{Address, Connection};
use crate::load::{Aim, closed};
use crate::nginx::Nginx;
use crate::platform::Platform;
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};

/// Connections of the load.
const CONNECTIONS: usize = 32;

/// How long the bare server may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let program = Program::server(stage)?;
    let platform = Platform::on_cores(stage, &stage.cores.server, &[("EDGE_THREADS", "1")])?;
    platform.deploy("server", &program, &json!({"contract": "http", "concurrency": 1000}))?;
    let (_bare, server) = bare(stage, &program)?;
    let second = Nginx::behind(stage, &server)?;
    let first = Nginx::start(stage, &second.address)?;
    let ours = platform.get_private("server");
    let theirs = Aim::new(first.address.clone(), ours.request.to_vec());
    let round = |aim: &Aim, watched: [u32; 2]| closed(aim, CONNECTIONS, stage.scale.round, &watched);
    let (hops, chain) = (platform.both(), [first.id(), second.id()]);
    round(&ours, hops)?;
    round(&theirs, chain)?;
    let (ours, theirs) = interleave(stage.scale.rounds, || round(&ours, hops), || round(&theirs, chain))?;
    let row = Row::ratio(
        "P3",
        "whole chain: CPU of a server's call",
        "A GET of a warm, private function that is a native server, over 32 kept connections. Ours: gateway (one edge \
         thread, JWT and all policies) and agent on one core; the server runs in its sandbox, and each call's record \
         is written to the agent's disk before its answer, and to SQLite after it. Theirs: two nginx hops, one worker \
         each, a Unix socket between them, on the same core, before the same program outside of a sandbox on the \
         load's core; no log. CPU is that of the proxies' processes alone.",
        (Side::cpu("gateway and agent", &ours), Side::cpu("nginx, nginx", &theirs)),
        Bound::AtMost(1.25),
    );
    Ok(vec![row])
}

/// The same program among the load.
fn bare(stage: &Stage, program: &Program) -> Result<(Child, Address)> {
    let address = free_address()?;
    let mut command = pinned(&stage.cores.load, &program.folder.join("main"));
    command.env("PORT", address.port().to_string());
    let mut server = Child::spawn(command, "server", &stage.folder()?)?;
    let address = Address::Tcp(address);
    server.wait_until(LISTENS_WITHIN, || Connection::open(&address).is_ok())?;
    Ok((server, address))
}
