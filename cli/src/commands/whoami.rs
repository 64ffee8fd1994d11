//! `dartcloud whoami`.

use reqwest::Method;
use serde::Deserialize;

use crate::api::{self, Client, Server};
use crate::{output, progress};

/// The options of `whoami`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// Print a valid access token, for `curl`.
    #[arg(long, conflicts_with = "json")]
    print_token: bool,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Me {
    email: String,
    handle: String,
    #[serde(default)]
    operator: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let answer = progress::shown(|| "waiting for the server", client.call(Method::GET, "api/auth/me")).await?;
    if args.print_token {
        return Ok(output::line(client.token())?);
    }
    if args.json {
        return Ok(output::line(answer)?);
    }
    let Me { email, handle, operator } = api::parse(&answer)?;
    let role = if operator { ", the operator," } else { "" };
    Ok(output::line(format_args!("{email} ({handle}){role} on {}", client.base()))?)
}
