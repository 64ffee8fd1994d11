//! Where nodes dial a gateway: `https://host:port`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 443;

/// The URL of a gateway's node port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeUrl {
    host: String,
    port: u16,
}

/// The text is no such URL.
#[derive(Debug, thiserror::Error)]
#[error("a node port is named as https://host:port")]
pub struct InvalidNodeUrl;

impl NodeUrl {
    /// The URL of a host, which may be an address.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port }
    }

    /// The host name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for NodeUrl {
    type Err = InvalidNodeUrl;

    fn from_str(text: &str) -> Result<Self, InvalidNodeUrl> {
        let uri: http::Uri = text.parse().map_err(|_| InvalidNodeUrl)?;
        let authority = uri.authority().ok_or(InvalidNodeUrl)?;
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
        if uri.scheme_str() != Some("https") || !is_bare || authority.host().is_empty() {
            return Err(InvalidNodeUrl);
        }
        Ok(Self::new(authority.host(), authority.port_u16().unwrap_or(DEFAULT_PORT)))
    }
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "https://{open}{}{close}:{}", self.host, self.port)
    }
}

impl TryFrom<String> for NodeUrl {
    type Error = InvalidNodeUrl;

    fn try_from(text: String) -> Result<Self, InvalidNodeUrl> {
        text.parse()
    }
}

impl From<NodeUrl> for String {
    fn from(url: NodeUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(text.parse::<NodeUrl>().ok().map(|url| url.to_string()).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn urls() {
        check("https://gateway.example:9443", Some("https://gateway.example:9443"));
        check("https://gateway.example/", Some("https://gateway.example:443"));
        check("https://[::1]:9443", Some("https://[::1]:9443"));
        check("http://gateway.example:9443", None);
        check("https://gateway.example/path", None);
        check("https://a@gateway.example", None);
        check("gateway.example:9443", None);
        check("", None);
    }
}
