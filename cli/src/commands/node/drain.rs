//! `dartcloud node drain`: no new calls for a node, and the wait until those that are under way have ended.

use std::time::Duration;

use reqwest::Method;

use super::{NodeArgs, find, nodes};
use crate::api::Client;
use crate::output;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1500);

/// Looks in a row that must find nothing: the first may have come between a call's placement and its way out.
const QUIET_LOOKS: u32 = 2;

pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let node = find(&nodes(&mut client).await?, &args.node)?;
    client.call(Method::POST, &format!("api/nodes/{}/drain", node.id)).await?;
    let (mut quiet, mut said) = (0, None);
    while quiet < QUIET_LOOKS {
        tokio::time::sleep(PAUSE).await;
        let node = find(&nodes(&mut client).await?, &node.id)?;
        anyhow::ensure!(
            matches!(node.state.as_str(), "draining" | "lost"),
            "{} is {}: somebody gives it calls again",
            node.name,
            node.state
        );
        // A node that is lost has nothing that anybody waits for.
        let busy = node.busy.unwrap_or(0);
        quiet = if busy == 0 { quiet + 1 } else { 0 };
        if busy > 0 && said != Some(busy) {
            output::note(format_args!("{}: {busy} under way …", node.name));
            said = Some(busy);
        }
    }
    Ok(output::line(format_args!("{} ({}) is empty", node.name, node.id))?)
}
