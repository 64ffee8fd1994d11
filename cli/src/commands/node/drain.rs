//! `dartcloud node drain`: no new calls for a node, and the wait until what is warm there is warm on others and what is
//! under way has ended.

use std::cell::RefCell;
use std::time::Duration;

use reqwest::Method;

use super::{Node, NodeArgs, find, nodes};
use crate::api::Client;
use crate::{output, progress};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1500);

/// Looks in a row that must find nothing: the first may have come between a call's placement and its way out.
const QUIET_LOOKS: u32 = 2;

pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let node = find(&nodes(&mut client).await?, &args.node)?;
    client.call(Method::POST, &format!("api/nodes/{}/drain", node.id)).await?;
    let seen = RefCell::new(node);
    progress::shown(|| doing(&seen.borrow()), watch(&mut client, &seen)).await?;
    let node = seen.into_inner();
    if let Some(stranded) = node.stranded.filter(|stranded| *stranded > 0) {
        let what = functions(stranded);
        output::note(format_args!(
            "{what} could not be made warm on another node: the next calls are cold, or find no node."
        ));
    }
    Ok(output::line(format_args!("{} ({}) is empty", node.name, node.id))?)
}

/// Looks at a node until it is empty.
async fn watch(client: &mut Client, seen: &RefCell<Node>) -> anyhow::Result<()> {
    let id = seen.borrow().id.clone();
    let (mut quiet, mut was_told) = (0, false);
    while quiet < QUIET_LOOKS {
        tokio::time::sleep(PAUSE).await;
        let node = find(&nodes(client).await?, &id)?;
        anyhow::ensure!(
            matches!(node.state.as_str(), "draining" | "lost"),
            "{} is {}: somebody gives it calls again",
            node.name,
            node.state
        );
        anyhow::ensure!(
            node.state == "lost" || node.busy.is_some(),
            "{} is linked to another gateway only, and that one knows what is under way there: drain it there (--url)",
            node.name
        );
        if is_stuck(&node) && !was_told {
            output::note(format_args!(
                "{}: there is no other node, or none has room, for some of what is warm there.",
                node.name
            ));
            was_told = true;
        }
        // A node that is lost has nothing that anybody waits for.
        quiet = if (node.busy.unwrap_or(0), node.moving.unwrap_or(0)) == (0, 0) { quiet + 1 } else { 0 };
        seen.replace(node);
    }
    Ok(())
}

/// Whether something warm finds no other node, and is waited for all the same.
fn is_stuck(node: &Node) -> bool {
    node.moving.unwrap_or(0) > 0 && node.stranded.unwrap_or(0) > 0
}

/// What is waited for.
fn doing(node: &Node) -> String {
    let (busy, moving) = (node.busy.unwrap_or(0), node.moving.unwrap_or(0));
    let mut parts = Vec::new();
    if is_stuck(node) {
        parts.push(format!("no other node for {} of {}", node.stranded.unwrap_or(0), functions(moving)));
    } else if moving > 0 {
        parts.push(format!("{} on the way to other nodes", functions(moving)));
    }
    if busy > 0 || parts.is_empty() {
        parts.push(format!("{busy} under way"));
    }
    format!("{}: {}", node.name, parts.join(", "))
}

fn functions(count: u64) -> String {
    if count == 1 { "1 warm function".into() } else { format!("{count} warm functions") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let check = |busy, moving, stranded, expected: &str| {
            let node = Node { busy, moving, stranded, ..super::super::tests::node("1", "one") };
            assert_eq!(doing(&node), expected);
        };
        check(Some(0), Some(0), Some(0), "one: 0 under way");
        check(Some(3), None, None, "one: 3 under way");
        check(Some(3), Some(1), Some(0), "one: 1 warm function on the way to other nodes, 3 under way");
        check(Some(0), Some(5), Some(2), "one: no other node for 2 of 5 warm functions");
        check(Some(2), Some(0), Some(2), "one: 2 under way");
        check(None, None, None, "one: 0 under way");
    }
}
