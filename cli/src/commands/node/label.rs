//! `dartcloud node label`: what an operator says of a node, so that functions can ask for it.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{find, labelled, nodes};
use crate::api::{Client, Server};
use crate::output;

/// The options of `node label`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node, by its name or id.
    #[arg(value_name = "NODE")]
    node: String,
    /// `KEY=VALUE` gives a label, `KEY-` takes it away. What the agent says itself (`NODE_LABELS`) stays, and shows again.
    #[arg(value_name = "CHANGE", required = true, value_parser = change)]
    changes: Vec<(String, Value)>,
    #[command(flatten)]
    server: Server,
}

fn change(text: &str) -> Result<(String, Value), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Value::String(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), Value::Null)),
        (None, None) => Err("a change is KEY=VALUE or KEY-".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let node = find(&nodes(&mut client).await?, &args.node)?;
    let labels: Map<_, _> = args.changes.into_iter().collect();
    let body = json!({"labels": labels});
    client.send(Method::PATCH, &format!("api/nodes/{}", node.id), async |request| Ok(request.json(&body))).await?;
    let node = find(&nodes(&mut client).await?, &node.id).context("the node is gone")?;
    Ok(output::line(format_args!("{} ({}) has the labels {}", node.name, node.id, labelled(&node)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        let check = |text: &str, expected: Option<(&str, Value)>| {
            let expected = expected.map(|(key, value)| (key.to_owned(), value));
            assert_eq!(change(text).ok(), expected, "{text}");
        };
        check("gpu=true", Some(("gpu", json!("true"))));
        check("gpu=", Some(("gpu", json!(""))));
        check("gpu-", Some(("gpu", Value::Null)));
        check("gpu=a-", Some(("gpu", json!("a-"))));
        check("gpu", None);
    }
}
