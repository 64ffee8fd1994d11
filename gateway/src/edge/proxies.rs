//! Proxies before us that are believed: of what they send, the client's address and scheme are what they say.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::{HeaderMap, HeaderName};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The networks of all proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

/// `TRUSTED_PROXIES` is no list of networks.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no address and no network: list them with commas between, such as 10.0.0.0/8,fd00::/8")]
pub struct InvalidProxies(String);

impl FromStr for Proxies {
    type Err = InvalidProxies;

    fn from_str(text: &str) -> Result<Self, InvalidProxies> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let networks = parts.map(|part| Network::of(part).ok_or_else(|| InvalidProxies(part.to_owned())));
        networks.collect::<Result<_, _>>().map(Self)
    }
}

impl Network {
    fn of(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits: u32 = match bits {
            None => all,
            // `u32::from_str` would take a plus sign.
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
        };
        if bits > all {
            return None;
        }
        // An IPv4 network in the clothes of IPv6.
        let canonical = address.to_canonical();
        let spare = if canonical.is_ipv4() { all - 32 } else { 0 };
        Some(bits.checked_sub(spare).map_or(Self { address, bits }, |bits| Self { address: canonical, bits }))
    }

    fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => (ours.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits,
            (IpAddr::V6(ours), IpAddr::V6(other)) => (ours.to_bits() ^ other.to_bits()).leading_zeros() >= self.bits,
            _ => false,
        }
    }
}

impl Proxies {
    /// Whether this address is a proxy's that is believed.
    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.holds(address))
    }

    /// For whom `peer`, which is believed, sends these headers: the right-most address that is not believed itself.
    /// What stands left of it was said by whoever that is. Where there is none, or a word that is no address, it is the
    /// last that was believed.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer;
        for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
                let Some(address) = std::str::from_utf8(hop).ok().and_then(address_of) else { return nearest };
                nearest = address;
                if !self.hold(address) {
                    return nearest;
                }
            }
        }
        nearest
    }
}

/// What the nearest proxy says that the client spoke, if it is one of the two.
pub(crate) fn scheme(headers: &HeaderMap) -> Option<&'static str> {
    let line = headers.get_all(X_FORWARDED_PROTO).iter().next_back()?.to_str().ok()?;
    let word = line.rsplit(',').next()?.trim();
    ["http", "https"].into_iter().find(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// An address as proxies write it: with a port or without, of IPv6 with brackets or without.
fn address_of(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|bare| bare.contains(':'));
    let address = bare.unwrap_or(hop).parse().ok().or_else(|| hop.parse().ok().map(|socket: SocketAddr| socket.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_bytes(line.as_bytes()).unwrap())).collect()
    }

    fn check(lines: &[&str], expected: &str) {
        let proxies: Proxies = "10.0.0.0/8, fd00::/8,192.0.2.7".parse().unwrap();
        let client = proxies.client("10.0.0.1".parse().unwrap(), &headers(&X_FORWARDED_FOR, lines));
        assert_eq!(client.to_string(), expected, "{lines:?}");
    }

    #[test]
    fn the_client_behind_proxies() {
        check(&[], "10.0.0.1");
        check(&["198.51.100.1"], "198.51.100.1");
        // What the client made up stands to the left of what the proxy saw.
        check(&["127.0.0.1, 10.0.0.9, 198.51.100.1"], "198.51.100.1");
        check(&["1.1.1.1", "198.51.100.1"], "198.51.100.1");
        check(&["198.51.100.1", "10.0.0.2"], "198.51.100.1");
        check(&["8.8.8.8, 198.51.100.1, fd00::1 ,192.0.2.7,10.1.2.3"], "198.51.100.1");
        check(&["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check(&["198.51.100.1:4711"], "198.51.100.1");
        check(&["2001:db8::1"], "2001:db8::1");
        check(&["[2001:db8::1]"], "2001:db8::1");
        check(&["[2001:db8::1]:4711"], "2001:db8::1");
        check(&["::ffff:198.51.100.1"], "198.51.100.1");
        check(&["198.51.100.1, ::ffff:10.0.0.2"], "198.51.100.1");
        for malformed in ["", ",", "unknown", "_hidden", "198.51.100", "1.2.3.4:x", "[1.2.3.4]", "a.example", "ü", "%"]
        {
            check(&[malformed], "10.0.0.1");
            check(&[&format!("198.51.100.1, {malformed}, 10.0.0.2")], "10.0.0.2");
        }
    }

    #[test]
    fn the_scheme_that_a_proxy_saw() {
        let check = |lines: &[&str], expected| assert_eq!(scheme(&headers(&X_FORWARDED_PROTO, lines)), expected);
        check(&[], None);
        check(&["https"], Some("https"));
        check(&["HTTP"], Some("http"));
        check(&["http, https"], Some("https"));
        check(&["http", "https"], Some("https"));
        check(&["ftp"], None);
        check(&[""], None);
    }

    #[test]
    fn lists_of_networks() {
        let holds = |list: &str, address: &str, expected| {
            assert_eq!(list.parse::<Proxies>().unwrap().hold(address.parse().unwrap()), expected, "{list} {address}");
        };
        holds("", "127.0.0.1", false);
        holds("127.0.0.1", "127.0.0.1", true);
        holds("127.0.0.1", "127.0.0.2", false);
        holds("10.1.2.3/8", "10.9.9.9", true);
        holds("10.0.0.0/8", "11.0.0.0", false);
        holds("0.0.0.0/0", "203.0.113.1", true);
        holds("0.0.0.0/0", "::1", false);
        holds("10.0.0.0/8", "::ffff:10.0.0.1", true);
        holds("::ffff:10.0.0.0/104", "10.0.0.1", true);
        holds("::/0", "2001:db8::1", true);
        holds("2001:db8::/32", "2001:db9::1", false);
        for wrong in
            ["x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "10.0.0.0/8;::1", "a.example"]
        {
            assert!(wrong.parse::<Proxies>().is_err(), "{wrong}");
        }
    }
}
