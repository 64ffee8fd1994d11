//! S1: what thousands of deployed functions cost one of them, and what memory each takes in the gateway.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::digest::Digest;
use common::function::{Access, Contract, Limits};
use common::ids::{DeploymentId, FunctionId, GatewayId};
use serde_json::json;
use store::{NewDeployment, StoreArgs};

use crate::load::{Aim, Sample, closed};
use crate::machine::resident_mb;
use crate::platform::{EMAIL, Platform};
use crate::program::Program;
use crate::report::{Bound, Row, Side};
use crate::stage::{Stage, interleave};

/// Connections of the load.
const CONNECTIONS: usize = 32;

/// The few.
const FEW: usize = 10;

/// A deployed function, and how many there are beside it.
struct House {
    platform: Platform,
    call: Aim,
}

pub(super) fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let count = stage.scale.functions;
    let (many, few) = (house(stage, count)?, house(stage, FEW)?);
    let round = |house: &House| closed(&house.call, CONNECTIONS, stage.scale.round, &[house.platform.gateway()]);
    round(&many)?;
    round(&few)?;
    let (fast, slow): (Vec<Sample>, Vec<Sample>) = interleave(stage.scale.rounds, || round(&many), || round(&few))?;
    let resident = |house: &House| resident_mb(house.platform.gateway());
    let (most, least) = (resident(&many)?, resident(&few)?);
    let each = (most - least) * 1e3 / (count - FEW) as f64;
    Ok(vec![
        Row::ratio(
            "S1",
            format!("requests per core: {count} functions / {FEW}"),
            format!(
                "Two gateways with one edge thread each, on the same core in turn, with stand-in nodes: a GET of \
                 one private function as in P1, while {count} or {FEW} functions are deployed."
            ),
            (Side::per_core(format!("{count} functions"), &fast), Side::per_core(format!("{FEW} functions"), &slow)),
            Bound::AtLeast(0.97),
        ),
        Row::value(
            "S1",
            "memory of a function in the gateway",
            format!(
                "VmRSS of the gateway with {count} functions less that with {FEW}, after the same load, by the \
                 difference in functions, in KB of 1,000 bytes. Both were started on a database that held them."
            ),
            Side::new("each function", "KB", vec![each]),
            Bound::AtMost(4.0),
        )
        .note(format!("{most:.1} MB with {count}, {least:.1} MB with {FEW}")),
    ])
}

/// A gateway that was started on a database of so many functions, all of one user; one of them is called.
fn house(stage: &Stage, count: usize) -> Result<House> {
    // In memory: filling the table is not what is measured.
    let data_dir = stage.memory()?;
    // Once without them, so that the user is there.
    let first = Platform::edge(stage, data_dir.clone())?;
    first.deploy("private", &Program::native(stage)?, &json!({"concurrency": 1000}))?;
    drop(first);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(fill(&data_dir, count - 1))?;
    for left in ["upstream.sock", "link.sock"] {
        // The stand-in binds its own anew; the gateway's own is gone already.
        let _ = std::fs::remove_file(data_dir.join(left));
    }
    let platform = Platform::edge(stage, data_dir)?;
    let call = platform.get_private("private");
    Ok(House { platform, call })
}

/// Puts functions into the store as deploys would have left them.
async fn fill(data_dir: &Path, count: usize) -> Result<()> {
    let store = store::open(&StoreArgs::default(), data_dir).await?;
    let owner = store.user_by_email(EMAIL).await?.context("the user is gone")?.id;
    for number in 0..count {
        let new = NewDeployment {
            id: DeploymentId::new(),
            gateway: GatewayId::new(),
            function_if_new: FunctionId::new(),
            owner,
            name: format!("function-{number}").parse()?,
            runtime: "native".parse()?,
            entrypoint: "main".to_owned(),
            archive: Digest::of(number.to_string().as_bytes()),
            archive_root: None,
            access: Access::Private,
            contract: Contract::File,
            limits: Limits { timeout_ms: 5000, memory_mb: 128, concurrency: 10, min_warm: 0 },
            env: Default::default(),
            egress: false,
            stale_while_cold_ms: 0,
            node_selector: common::labels::Labels::NONE,
        };
        let pending = store.create_deployment(new).await?;
        store.activate_deployment(pending.spec.deployment, 1).await?;
    }
    Ok(())
}
