//! `dartcloud node join`: this machine becomes a node of a fleet, and its agent runs.

use common::join_token::JoinToken;
use common::node_url::NodeUrl;
use common::settings::Shared;
use node_agent::enrol::{self, JoinError, Joined};
use store::StoreArgs;

use crate::{failure, output};

/// The options of `node join`: where, by which token, and the agent's settings.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The gateways' node ports, separated by commas; one of them takes the machine in.
    #[arg(value_name = "URL", value_delimiter = ',', num_args = 1, required = true)]
    urls: Vec<NodeUrl>,
    /// The token; both stand in the line that `dartcloud node token` prints.
    #[arg(value_name = "TOKEN", hide_env_values = true)]
    token: JoinToken,
    /// Only join: a unit of the system runs `dartcloud-node-agent` with the same DATA_DIR afterwards.
    #[arg(long)]
    enroll_only: bool,
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    agent: node_agent::Settings,
}

/// Blocks the calling thread until the agent ends, or until the machine has joined.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    common::telemetry::init("info");
    common::descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let Args { urls, token, enroll_only, shared, store, agent } = args;
        let name = agent.node_name.clone().unwrap_or_else(node_agent::machine_name);
        let joined = enrol::join(&shared.place.data_dir, &urls, &token, &name).await.map_err(explained)?;
        for line in told(joined) {
            output::note(line);
        }
        if enroll_only {
            return Ok(());
        }
        Ok(node_agent::program::serve(agent, shared, store).await?)
    })
}

/// What a person has to mend is a wrong command line.
fn explained(error: JoinError) -> anyhow::Error {
    match error {
        error @ (JoinError::OtherFleet(_) | JoinError::Refused(_)) => failure::wrong(error.to_string()),
        error => error.into(),
    }
}

fn told(joined: Joined) -> Vec<String> {
    let Joined { node, before, clock_ahead } = joined;
    let mut lines = vec![if before {
        format!("This machine is the node {node} already, and goes on as that; the token was not used.")
    } else {
        format!("This machine is the node {node} now.")
    }];
    lines.extend(clock_ahead.map(|ahead| {
        let (seconds, word) =
            (ahead.abs().as_seconds_f64().round(), if ahead.as_seconds_f64() > 0.0 { "ahead of" } else { "behind" });
        format!("Its clock is {seconds} s {word} the gateway's: set it right, or records and certificates will be off.")
    }));
    lines
}
