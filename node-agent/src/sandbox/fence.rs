//! What sandboxes with a network do not reach: this machine, what only a private network holds, and the cloud's
//! metadata service, which hands the machine's own credentials to whoever asks. The rules stand where packets come in
//! from the bridge, before Docker's, which come and go with the Engine.

use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::ids::NodeId;
use tokio::sync::Mutex;

use super::command;

/// How long a change of the rules may take. iptables itself waits at most half of it for other programs.
const LIMIT: Duration = Duration::from_secs(10);
const WAIT_SECONDS: &str = "5";
/// How often it is looked whether the rules still stand.
const ROUND: Duration = Duration::from_secs(5);
/// Link-local addresses, where metadata services are, those that are private or a provider's, and the one address of
/// Azure's host, which is none of these and gives certificates and settings of the machine to whoever asks.
const CLOSED: [&str; 6] =
    ["169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "168.63.129.16/32"];

/// The rules around the bridge of a node's network.
#[derive(Debug)]
pub(super) struct Fence {
    bridge: String,
    allowed: Vec<String>,
    /// When this life of the agent saw it stand last; `None` before it has put it up.
    seen: Mutex<Option<Instant>>,
}

impl Fence {
    pub(super) fn new(node: NodeId, allowed: &[String]) -> Self {
        // A device's name has at most 15 bytes, and the end of the id is what differs.
        let id = node.uuid().simple().to_string();
        Self { bridge: format!("dc{}", &id[id.len() - 12..]), allowed: allowed.to_vec(), seen: Mutex::new(None) }
    }

    /// The name that the network's bridge has to have.
    pub(super) fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Sees to it that the rules stand: something may have swept them away.
    pub(super) async fn stand(&self) -> io::Result<()> {
        let mut seen = self.seen.lock().await;
        let stands = self.jump("-C").await.is_ok();
        if seen.is_none() || !stands {
            self.put_up(stands).await?;
        }
        *seen = Some(Instant::now());
        Ok(())
    }

    /// Looks now and then whether rules that were put up still stand, for those who are behind them; whether they did
    /// not, and do again.
    pub(super) async fn hold(&self) -> io::Result<bool> {
        let mut seen = self.seen.lock().await;
        if seen.is_none_or(|seen| seen.elapsed() < ROUND) {
            return Ok(false);
        }
        *seen = Some(Instant::now());
        let stands = self.jump("-C").await.is_ok();
        if !stands {
            self.put_up(false).await?;
        }
        Ok(!stands)
    }

    /// Puts the rules up in one step. Where a jump to them was `there`, of an earlier life, there are two for a moment, and
    /// never none.
    async fn put_up(&self, there: bool) -> io::Result<()> {
        restore(&rules(&self.bridge, &self.allowed)).await?;
        if there { self.jump("-D").await } else { Ok(()) }
    }

    /// Takes the rules away, once the network is gone.
    pub(super) async fn fall(&self) -> io::Result<()> {
        let mut seen = self.seen.lock().await;
        if seen.take().is_some() {
            // There may be several: one that could not be looked for was put up again.
            while self.jump("-D").await.is_ok() {}
            let chain = format!("*mangle\n-F {0}\n-X {0}\nCOMMIT\n", self.bridge);
            restore(&chain).await?;
        }
        Ok(())
    }

    async fn jump(&self, action: &str) -> io::Result<()> {
        let bridge = &self.bridge;
        let words = ["-w", WAIT_SECONDS, "-t", "mangle", action, "PREROUTING", "-i", bridge, "-j", bridge];
        command::run("iptables", &words, "", LIMIT).await
    }
}

async fn restore(text: &str) -> io::Result<()> {
    command::run("iptables-restore", &["-w", WAIT_SECONDS, "--noflush"], text, LIMIT).await
}

/// The chain, which has the bridge's name, and the jump to it. Names are resolved wherever the resolver is.
fn rules(bridge: &str, allowed: &[String]) -> String {
    let mut text = format!("*mangle\n:{bridge} - [0:0]\n");
    let mut rule = |what: &str| writeln!(text, "-A {bridge} {what}").expect("a String takes all");
    rule("-p udp --dport 53 -j RETURN");
    rule("-p tcp --dport 53 -j RETURN");
    allowed.iter().for_each(|range| rule(&format!("-d {range} -j RETURN")));
    rule("-m addrtype --dst-type LOCAL -j DROP");
    CLOSED.iter().for_each(|range| rule(&format!("-d {range} -j DROP")));
    text + &format!("-I PREROUTING 1 -i {bridge} -j {bridge}\nCOMMIT\n")
}

/// Reads an address or a range, `192.0.2.0/24`.
pub(super) fn range(text: &str) -> Result<String, String> {
    let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
    match (address.parse::<Ipv4Addr>(), bits.parse::<u8>()) {
        (Ok(address), Ok(bits @ ..=32)) => Ok(format!("{address}/{bits}")),
        _ => Err("an IPv4 address or range is written like 192.0.2.7 or 192.0.2.0/24".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_comes_first() {
        let text = rules("dc0", &["10.1.0.0/16".to_owned()]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{text} has no {part}"));
        assert!(at("--dport 53 -j RETURN") < at("-d 10.1.0.0/16 -j RETURN"));
        assert!(at("-d 10.1.0.0/16 -j RETURN") < at("--dst-type LOCAL -j DROP"));
        // Names are still resolved there.
        assert!(at("--dport 53 -j RETURN") < at("-d 168.63.129.16/32 -j DROP"));
        assert!(at("-d 169.254.0.0/16 -j DROP") < at("-I PREROUTING 1 -i dc0 -j dc0"));
        assert!(text.ends_with("COMMIT\n"));
    }

    #[test]
    fn ranges() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(range(text).ok().as_deref(), expected, "{text}");
        check("192.0.2.7", Some("192.0.2.7/32"));
        check("10.0.0.0/8", Some("10.0.0.0/8"));
        check("0.0.0.0/0", Some("0.0.0.0/0"));
        check("10.0.0.0/33", None);
        check("10.0.0.0/8 -j ACCEPT", None);
        check("example.org", None);
        check("", None);
    }

    #[test]
    fn bridges_have_short_names_of_their_own() {
        let (one, two) = (Fence::new(NodeId::new(), &[]), Fence::new(NodeId::new(), &[]));
        assert!(one.bridge().len() <= 15 && one.bridge() != two.bridge());
    }
}
