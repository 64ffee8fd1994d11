//! Who sends a request: the other end of a connection, or the client behind a proxy that is believed.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use tokio::sync::Notify;

use super::proxies::{self, Proxies};
use super::seats::Seated;

/// Who is at the other end of a connection, or behind the proxy that is.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(super) address: IpAddr,
    pub(super) address_text: HeaderValue,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// Set where it is a proxy that is believed.
    pub(super) proxies: Option<Arc<Proxies>>,
    /// Closes the connection, whatever it stands at; of HTTP/2, the stream.
    pub(crate) cut: Arc<Notify>,
    /// What it holds as long as it is there.
    pub(super) seated: Option<Arc<Seated>>,
}

impl Peer {
    pub(crate) fn new(address: IpAddr, scheme: &'static str, proxies: Option<Arc<Proxies>>) -> Self {
        let address = address.to_canonical();
        let address_text = HeaderValue::try_from(address.to_string()).expect("an address is a valid header value");
        Self { address, address_text, scheme, proxies, cut: Arc::default(), seated: None }
    }

    /// The client for whom a proxy sends a request with these headers.
    pub(super) fn behind(&self, headers: &HeaderMap) -> Option<Self> {
        let proxies = self.proxies.as_ref()?;
        let (client, scheme) = (proxies.client(self.address, headers), proxies::scheme(headers));
        let (cut, seated) = (self.cut.clone(), self.seated.clone());
        Some(Self { cut, seated, ..Self::new(client, scheme.unwrap_or(self.scheme), None) })
    }
}
