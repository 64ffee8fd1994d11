//! How a gateway is reached: by its Unix socket on the same machine, by TLS from any other.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use common::conduit::{Conduit, Socket};
use common::ids::NodeId;
use common::node_url::NodeUrl;
use common::protocol::{GATEWAY_NAME, Hello, Kind, VERSION};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a connection may take to open, its first line included.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// Which life of the agent this is: when the process first dialled, in microseconds.
static EPOCH: LazyLock<u64> = LazyLock::new(|| {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
});

/// Who dials, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// Where the gateway is.
    pub(crate) way: Way,
    /// This node.
    pub(crate) node: NodeId,
}

/// Where a gateway is.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// On this machine.
    Unix(PathBuf),
    /// On any machine.
    Tls {
        /// Where its node port is.
        url: NodeUrl,
        /// How we show ourselves; changes when the certificate is renewed.
        config: Arc<ArcSwap<ClientConfig>>,
    },
}

/// No connection. The sentence says what to do where it is not for the gateway to come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the gateway cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the gateway cannot be reached in time")]
    Late,
    #[error("this machine's clock says that the gateway's certificate is not valid now: set the clock right")]
    Clock(#[source] io::Error),
    #[error(
        "whoever answers there is not this fleet's gateway, or the fleet got a new authority without this node; then let this machine join again with a new token, from an empty DATA_DIR"
    )]
    Foreign(#[source] io::Error),
    #[error(
        "the gateway does not take this node's certificate: it has ended, or the fleet has a new authority; let this machine join again with a new token, from an empty DATA_DIR"
    )]
    Refused(#[source] io::Error),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tls { url, .. } => url.fmt(f),
        }
    }
}

impl Dialer {
    /// Opens a connection and says what it is for.
    pub(crate) async fn dial(&self, kind: Kind) -> Result<Conduit, DialError> {
        let dial = async {
            let mut stream = match &self.way {
                Way::Unix(path) => UnixStream::connect(path).await.map_err(DialError::Unreachable)?.into(),
                Way::Tls { url, config } => shake(url, config.load_full()).await?,
            };
            say_hello(&mut stream, self.node, kind).await.map_err(DialError::Unreachable)?;
            Ok(stream)
        };
        timeout(DIAL_DEADLINE, dial).await.unwrap_or(Err(DialError::Late))
    }
}

/// Opens a TLS connection to a gateway.
pub(crate) async fn shake(url: &NodeUrl, config: Arc<ClientConfig>) -> Result<Conduit, DialError> {
    let name = ServerName::try_from(GATEWAY_NAME).expect("a fixed name is valid");
    let tcp = TcpStream::connect((url.host(), url.port())).await.map_err(DialError::Unreachable)?;
    let socket = Socket::new(tcp).map_err(DialError::Unreachable)?;
    let stream = TlsConnector::from(config).connect(name, socket).await.map_err(explain)?;
    Ok(Conduit::Tls(Box::new(stream.into())))
}

/// Says the first line.
pub(crate) async fn say_hello(stream: &mut Conduit, node: NodeId, kind: Kind) -> io::Result<()> {
    let hello = Hello { protocol: VERSION, node, kind, epoch: *EPOCH };
    let mut line = serde_json::to_vec(&hello).expect("a hello is numbers and words");
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

/// What a failed handshake means.
pub(crate) fn explain(error: io::Error) -> DialError {
    use CertificateError as C;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        )) => DialError::Clock(error),
        Some(rustls::Error::InvalidCertificate(_)) => DialError::Foreign(error),
        _ => DialError::Unreachable(error),
    }
}

/// What an error on a connection that was open means: with TLS 1.3 a gateway says only now what it thinks of our
/// certificate.
pub(crate) fn explain_refusal(error: io::Error) -> DialError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(_)) => DialError::Refused(error),
        _ => DialError::Unreachable(error),
    }
}
