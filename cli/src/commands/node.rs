//! `dartcloud node`: the machines of the fleet. `token` and `join` add one, the others operate it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use common::node_url::NodeUrl;
use reqwest::Method;
use serde::Deserialize;

use crate::api::{self, Client, Server};
use crate::{failure, output, progress};

mod authority;
mod doctor;
mod drain;
pub(crate) mod join;
mod label;

/// The options of `node`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the line that makes another machine a node; it is good once, for 15 minutes.
    Token(TokenArgs),
    /// Make this machine a node of a fleet, and run its agent until Ctrl-C.
    Join(Box<join::Args>),
    /// Look whether this machine can run functions: each finding with what it means and the fix.
    Doctor(Box<doctor::Args>),
    /// Show the nodes.
    List(ListArgs),
    /// Give a node labels, or take them away, for functions that ask for them by `node_selector`.
    Label(label::Args),
    /// Give a node no more calls, but for what is warm there and nowhere else.
    Cordon(NodeArgs),
    /// Give a node calls again.
    Uncordon(NodeArgs),
    /// Give a node no more calls at all, once others have warm what it has warm, and wait until it has none.
    Drain(NodeArgs),
    /// Take a node out of the fleet: its certificate is worth nothing from then on.
    Remove(NodeArgs),
    /// Show which authority certifies the nodes, or exchange it.
    Authority(Box<authority::Args>),
}

#[derive(Debug, clap::Args)]
struct TokenArgs {
    #[command(flatten)]
    server: Server,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    server: Server,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// The node, by its name or id.
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    server: Server,
}

/// Runs the command; `join` brings a runtime of its own.
pub(crate) fn run(args: Args, wait: impl Fn(WaitFor) -> anyhow::Result<()>) -> anyhow::Result<()> {
    match args.command {
        Command::Join(args) => join::run(*args),
        Command::Doctor(args) => wait(Box::pin(doctor::run(*args))),
        Command::Token(args) => wait(Box::pin(token(args))),
        Command::List(args) => wait(Box::pin(list(args))),
        Command::Label(args) => wait(Box::pin(label::run(args))),
        Command::Cordon(args) => wait(Box::pin(order(args, "cordon"))),
        Command::Uncordon(args) => wait(Box::pin(order(args, "uncordon"))),
        Command::Drain(args) => wait(Box::pin(drain::run(args))),
        Command::Remove(args) => wait(Box::pin(remove(args))),
        Command::Authority(args) => wait(Box::pin(authority::run(*args))),
    }
}

/// A client command under way.
pub(crate) type WaitFor = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

async fn token(args: TokenArgs) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Invited {
        command: String,
        url: NodeUrl,
    }
    let mut client = Client::new(args.server)?;
    let answer = client.call(Method::POST, "api/nodes/tokens").await?;
    if args.json {
        return Ok(output::line(answer)?);
    }
    let Invited { command, url } = api::parse(&answer)?;
    if is_here(url.host()) {
        output::note("This line works on the gateway's own machine only: set NODE_URL to how other machines reach it.");
    }
    Ok(output::line(command)?)
}

/// Whether a host is the machine itself for whoever names it.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// A node of the list. What is not known of one that is lost is `None`.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    id: String,
    name: String,
    /// An older server does not say.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    state: String,
    protocol: Option<u32>,
    busy: Option<u32>,
    warm: Option<u64>,
    /// Of one that is drained; an older server does not say.
    moving: Option<u64>,
    stranded: Option<u64>,
    memory_used_mb: Option<u64>,
    memory_total_mb: Option<u64>,
    last_seen: Option<String>,
    certificate_expires_at: Option<String>,
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

async fn nodes(client: &mut Client) -> anyhow::Result<Vec<Node>> {
    let answer = client.call(Method::GET, "api/nodes").await?;
    Ok(api::parse::<Nodes>(&answer)?.nodes)
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let answer = progress::shown(|| "waiting for the server", client.call(Method::GET, "api/nodes")).await?;
    if args.json {
        return Ok(output::line(answer)?);
    }
    let Nodes { nodes } = api::parse(&answer)?;
    if nodes.is_empty() {
        output::note("No nodes yet: `dartcloud node token` prints the line that adds one.");
        return Ok(());
    }
    let head =
        ["NODE", "NAME", "LABELS", "STATE", "PROTOCOL", "BUSY", "WARM", "MEMORY", "LAST SEEN", "CERTIFICATE UNTIL"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(nodes.into_iter().map(row));
    Ok(output::table(&rows)?)
}

fn row(node: Node) -> Vec<String> {
    let labels = labelled(&node);
    let memory = node.memory_used_mb.zip(node.memory_total_mb).map(|(used, total)| format!("{used}/{total} MiB"));
    let known = [
        node.protocol.map(|number| number.to_string()),
        node.busy.map(|number| number.to_string()),
        node.warm.map(|number| number.to_string()),
        memory,
        node.last_seen,
        node.certificate_expires_at,
    ];
    let known = known.map(|cell| cell.unwrap_or_else(|| "-".into()));
    [vec![node.id, node.name, labels, node.state], known.to_vec()].concat()
}

/// A node's labels, as they are written.
fn labelled(node: &Node) -> String {
    let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(",") }
}

/// The node that `wanted` names, among all.
fn find(nodes: &[Node], wanted: &str) -> anyhow::Result<Node> {
    let named: Vec<_> = nodes.iter().filter(|node| node.id == wanted || node.name == wanted).collect();
    match named.as_slice() {
        [node] => Ok((*node).clone()),
        [] => {
            Err(failure::wrong(format!("there is no node {wanted}: `dartcloud node list` shows those that are there")))
        }
        _ => Err(failure::wrong(format!("several nodes are called {wanted}: name it by its id"))),
    }
}

async fn order(args: NodeArgs, what: &str) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let node = find(&nodes(&mut client).await?, &args.node)?;
    client.call(Method::POST, &format!("api/nodes/{}/{what}", node.id)).await?;
    let node = find(&nodes(&mut client).await?, &node.id).context("the node is gone")?;
    Ok(output::line(format_args!("{} ({}) is {}", node.name, node.id, node.state))?)
}

async fn remove(args: NodeArgs) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let node = find(&nodes(&mut client).await?, &args.node)?;
    client.call(Method::DELETE, &format!("api/nodes/{}", node.id)).await?;
    Ok(output::line(format_args!("{} ({}) is removed", node.name, node.id))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn node(id: &str, name: &str) -> Node {
        serde_json::from_value(serde_json::json!({"id": id, "name": name, "state": "lost"})).unwrap()
    }

    #[test]
    fn a_node_by_name_or_id() {
        let nodes = [node("1", "one"), node("2", "two"), node("3", "two")];
        let check = |wanted: &str, expected: Result<&str, &str>| match (find(&nodes, wanted), expected) {
            (Ok(node), Ok(id)) => assert_eq!(node.id, id),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{wanted}: {:?}, expected {expected:?}", got.map(|node| node.id)),
        };
        check("one", Ok("1"));
        check("3", Ok("3"));
        check("two", Err("several"));
        check("four", Err("no node four"));
    }

    #[test]
    fn hosts_that_are_here() {
        let check = |host, expected| assert_eq!(is_here(host), expected, "{host}");
        check("localhost", true);
        check("127.0.0.1", true);
        check("::1", true);
        check("192.0.2.7", false);
        check("gateway.example", false);
    }

    #[test]
    fn a_lost_node_has_dashes() {
        assert_eq!(row(node("1", "one")), ["1", "one", "-", "lost", "-", "-", "-", "-", "-", "-"]);
    }
}
