//! `dartcloud node doctor`: what this machine is like, and what to do about it.

use common::settings::Shared;
use node_agent::doctor::{Grade, examine};

use crate::output;

/// The options of `node doctor`: the settings that the agent has.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shared: Shared,
    #[command(flatten)]
    agent: node_agent::Settings,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let findings = examine(&args.agent, &args.shared.place).await;
    for finding in &findings {
        output::line(format_args!("{:5} {:8} {}", finding.grade.word(), finding.about, finding.sentence))?;
    }
    let failed = findings.iter().filter(|finding| finding.grade == Grade::Fail).count();
    match failed {
        0 => Ok(()),
        1 => anyhow::bail!("one finding keeps functions from running here"),
        failed => anyhow::bail!("{failed} findings keep functions from running here"),
    }
}
