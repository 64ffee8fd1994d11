//! `dartcloud delete`.

use std::io::IsTerminal as _;

use common::names::FunctionName;
use reqwest::Method;

use crate::api::{Client, Server};
use crate::{failure, output, progress, prompt};

/// The options of `delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function, by its name or id.
    function: FunctionName,
    #[command(flatten)]
    server: Server,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { function, server, yes } = args;
    let mut client = Client::new(server)?;
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(failure::wrong("nobody is here to confirm: pass `--yes`"));
        }
        let question = format!("Delete {function} on {} with all its versions and logs? [y/N] ", client.base());
        if !matches!(prompt::line(&question, "pass `--yes`")?.trim(), "y" | "Y" | "yes") {
            output::note("Nothing was deleted.");
            return Ok(());
        }
    }
    let path = format!("api/functions/{function}");
    progress::shown(|| format!("deleting {function}"), client.call(Method::DELETE, &path)).await?;
    Ok(output::line(format_args!("Deleted {function}."))?)
}
