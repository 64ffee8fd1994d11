//! `dartcloud node authority`: which authority certifies the fleet's nodes, and the exchange of it while they stay joined.

use reqwest::Method;
use serde::Deserialize;

use crate::api::{self, Client, Server};
use crate::{output, progress};

/// The options of `node authority`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Let another authority certify from now on: nodes get certificates of it by themselves, and the one before is trusted
    /// until `--finish`.
    Rotate(RotateArgs),
}

#[derive(Debug, clap::Args)]
struct RotateArgs {
    /// End the trust in the authority before, once no node needs it.
    #[arg(long)]
    finish: bool,
    /// Leave nodes behind that still need it: they have to join again.
    #[arg(long, requires = "finish")]
    force: bool,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, clap::Args)]
struct Asked {
    #[command(flatten)]
    server: Server,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Standing {
    authorities: Vec<Authority>,
    waiting: Vec<Waiting>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authority {
    fingerprint: String,
    current: bool,
    valid_from: Option<String>,
    valid_until: Option<String>,
    nodes: u64,
}

#[derive(Deserialize)]
struct Waiting {
    id: String,
    name: String,
    why: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (method, path, asked) = match args.command {
        None => (Method::GET, "api/nodes/authority", args.asked),
        Some(Command::Rotate(args)) => {
            let path = match (args.finish, args.force) {
                (false, _) => "api/nodes/authority/rotate",
                (true, false) => "api/nodes/authority/finish",
                (true, true) => "api/nodes/authority/finish?force=true",
            };
            (Method::POST, path, args.asked)
        }
    };
    let mut client = Client::new(asked.server)?;
    let answer = progress::shown(|| "waiting for the server", client.call(method, path)).await?;
    if asked.json {
        return Ok(output::line(answer)?);
    }
    let Standing { authorities, waiting } = api::parse(&answer)?;
    let is_rotating = authorities.len() > 1;
    let mut rows = vec![["AUTHORITY", "STATE", "NODES", "VALID FROM", "VALID UNTIL"].map(str::to_owned).to_vec()];
    rows.extend(authorities.into_iter().map(row));
    output::table(&rows)?;
    for node in &waiting {
        output::note(said(node));
    }
    if is_rotating && waiting.is_empty() {
        output::note(
            "No node needs the authority before: `dartcloud node authority rotate --finish` ends the trust in it.",
        );
    }
    Ok(())
}

fn row(authority: Authority) -> Vec<String> {
    let state = if authority.current { "certifies" } else { "trusted" };
    let known = [authority.valid_from, authority.valid_until].map(|time| time.unwrap_or_else(|| "-".into()));
    [vec![authority.fingerprint, state.to_owned(), authority.nodes.to_string()], known.to_vec()].concat()
}

/// Why a node still needs the authority before.
fn said(node: &Waiting) -> String {
    let why = match node.why.as_str() {
        "soon" => "gets another certificate in a moment",
        "older" => "has an agent of an older version, which cannot learn of another authority: upgrade it",
        "elsewhere" => "is linked to another gateway, through which it gets another certificate",
        _ => "is not linked: start its agent, or remove the node",
    };
    format!("{} ({}) {why}.", node.name, node.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_node_waits() {
        let check = |why: &str, part: &str| {
            let sentence = said(&Waiting { id: "1".into(), name: "one".into(), why: why.into() });
            assert!(sentence.starts_with("one (1) ") && sentence.contains(part), "{sentence}");
        };
        check("soon", "in a moment");
        check("older", "upgrade it");
        check("elsewhere", "another gateway");
        check("away", "not linked");
    }

    #[test]
    fn an_authority_without_times_has_dashes() {
        let authority = serde_json::json!({"fingerprint": "ab", "current": false, "nodes": 2});
        assert_eq!(row(serde_json::from_value(authority).unwrap()), ["ab", "trusted", "2", "-", "-"]);
    }
}
