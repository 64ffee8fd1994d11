//! `dartcloud list`.

use common::names::FunctionName;
use reqwest::Method;
use serde::Deserialize;

use crate::api::{self, Client, Server};
use crate::{output, progress};

/// The options of `list`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: Server,
    /// Begin after this name, as the page before says where it ends.
    #[arg(long, value_name = "NAME")]
    after: Option<FunctionName>,
    /// Print the server's answer as it is.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Functions {
    functions: Vec<Function>,
    #[serde(default)]
    next: Option<FunctionName>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    status: String,
    version: Option<u32>,
    runtime: Option<String>,
    access: Option<String>,
    url: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut client = Client::new(args.server)?;
    let page = args.after.as_ref().map_or_else(String::new, |name| format!("?after={name}"));
    let path = format!("api/functions{page}");
    let answer = progress::shown(|| "waiting for the server", client.call(Method::GET, &path)).await?;
    if args.json {
        return Ok(output::line(answer)?);
    }
    let Functions { functions, next } = api::parse(&answer)?;
    if functions.is_empty() && args.after.is_none() {
        output::note("No functions yet: make one with `dartcloud new hello`, then `dartcloud deploy hello`.");
        return Ok(());
    }
    let mut rows = vec![["NAME", "STATUS", "VERSION", "RUNTIME", "ACCESS", "URL"].map(str::to_owned).to_vec()];
    rows.extend(functions.into_iter().map(|function| {
        let version = function.version.map(|version| format!("v{version}"));
        let url = function.url.map(|url| client.absolute(&url));
        let rest = [version, function.runtime, function.access, url].map(|cell| cell.unwrap_or_else(|| "-".into()));
        [vec![function.name, function.status], rest.to_vec()].concat()
    }));
    output::table(&rows)?;
    if let Some(next) = next {
        output::note(format_args!("There are more: `dartcloud list --after {next}`."));
    }
    Ok(())
}
