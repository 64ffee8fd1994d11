//! The agent's settings.

use common::labels::Labels;
use common::node_url::NodeUrl;

use crate::answers::AnswersArgs;
use crate::build_cache::BuildCacheArgs;
use crate::invocation::{BodiesArgs, StaleArgs};
use crate::link::LinkArgs;
use crate::sandbox::SandboxArgs;
use crate::spool::SpoolArgs;

/// All that an agent can be told, but for what a gateway is told, too: [`Shared`](common::settings::Shared) and the
/// store's settings.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "agent")]
pub struct Settings {
    /// What this node is called in lists; default: the machine's name.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// What this node has or is, for lists and placement: `zone=a,disk=ssd`.
    #[arg(long, env = "NODE_LABELS", default_value = "")]
    pub node_labels: Labels,
    /// The gateways' node ports, such as `https://gateway.example.com:9443`, separated by commas. A name that has several
    /// addresses is as many gateways. Default: those by which this machine joined; where it joined none, the gateway is on
    /// this machine.
    #[arg(long, env = "GATEWAY_URL", value_delimiter = ',')]
    pub gateway_url: Vec<NodeUrl>,
    /// Whether the gateway is on this machine whatever is set. No setting: `dartcloud dev` is gateway and agent.
    #[arg(skip)]
    pub is_local: bool,
    /// Sandboxes.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Requests in memory.
    #[command(flatten)]
    pub bodies: BodiesArgs,
    /// The build cache.
    #[command(flatten)]
    pub build_cache: BuildCacheArgs,
    /// The record spool.
    #[command(flatten)]
    pub spool: SpoolArgs,
    /// Answers that are kept for who asks again.
    #[command(flatten)]
    pub answers: AnswersArgs,
    /// Answers that are kept for cold functions.
    #[command(flatten)]
    pub stale: StaleArgs,
    /// The link.
    #[command(flatten)]
    pub link: LinkArgs,
}
