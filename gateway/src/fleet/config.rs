//! The node port's settings.

use std::net::SocketAddr;
use std::time::Duration;

use common::node_url::NodeUrl;

/// The port on which agents of other machines dial in.
#[derive(Clone, Debug, clap::Args)]
pub struct NodePortArgs {
    /// Where agents of other machines dial in, by TLS, such as `0.0.0.0:9443`. Default: nowhere, and every node is on
    /// this machine.
    #[arg(long, env = "NODE_ADDR", value_parser = common::options::socket_address)]
    pub node_addr: Option<SocketAddr>,
    /// How other machines reach that port, such as `https://gateway.example.com:9443`. Default: the address in
    /// `NODE_ADDR`, or, where that means all, the name by which the operator reaches this gateway.
    #[arg(long, env = "NODE_URL")]
    pub node_url: Option<NodeUrl>,
    /// How long a node's certificate is valid, in seconds: 30 days. The node renews it when two thirds are over.
    #[arg(long, env = "NODE_CERTIFICATE_SECONDS", default_value_t = 2_592_000, value_parser = clap::value_parser!(u32).range(10..=31_536_000))]
    pub node_certificate_seconds: u32,
}

impl NodePortArgs {
    pub(crate) fn certificate_lifetime(&self) -> Duration {
        Duration::from_secs(self.node_certificate_seconds.into())
    }

    /// How other machines reach the node port, if there is one; `host` is the name by which somebody reached us.
    pub(crate) fn url(&self, host: &str) -> Option<NodeUrl> {
        let address = self.node_addr?;
        Some(match &self.node_url {
            Some(url) => url.clone(),
            None if address.ip().is_unspecified() => NodeUrl::new(host, address.port()),
            None => NodeUrl::new(&address.ip().to_string(), address.port()),
        })
    }

    /// What the node port's certificate is for, beside the name that agents ask for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.url("localhost").map(|url| url.host().to_owned()).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: Option<&str>, url: Option<&str>, expected: Option<&str>) {
        let args = NodePortArgs {
            node_addr: address.map(|address| address.parse().unwrap()),
            node_url: url.map(|url| url.parse().unwrap()),
            node_certificate_seconds: 10,
        };
        let got = args.url("gateway.example").map(|url| url.to_string());
        assert_eq!(got.as_deref(), expected, "{address:?} {url:?}");
    }

    #[test]
    fn how_nodes_reach_us() {
        check(None, Some("https://a.example:1"), None);
        check(Some("0.0.0.0:9443"), Some("https://a.example:1"), Some("https://a.example:1"));
        check(Some("0.0.0.0:9443"), None, Some("https://gateway.example:9443"));
        check(Some("[::]:9443"), None, Some("https://gateway.example:9443"));
        check(Some("192.0.2.7:9443"), None, Some("https://192.0.2.7:9443"));
    }
}
