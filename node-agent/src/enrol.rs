//! How a machine joins a fleet: it looks whether the gateway is the one that the token means, tells it the token, and
//! gets a certificate for a key that never leaves the machine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use common::conduit::Conduit;
use common::digest::Digest;
use common::ids::NodeId;
use common::join_token::JoinToken;
use common::node_url::NodeUrl;
use common::protocol::{GATEWAY_NAME, JoinAnswer, JoinRequest, Kind};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::identity::{FreshKey, Identity, IdentityError};
use crate::link::dial::{self, DialError};

/// How long the whole of it may take.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);

/// How far a clock may be off before it is worth a word.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(60);

/// The machine has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The identity cannot be made or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// None was named.
    #[error("no gateway is named")]
    NoGateway,
    /// The gateway cannot be reached.
    #[error("cannot reach the gateway at {url}")]
    Dial {
        /// Where it should be.
        url: NodeUrl,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody else answers.
    #[error(
        "the gateway at {0} is not of the fleet that the token is for, or the fleet has had a new authority since the token \
         was made; the token was not sent: make another with `dartcloud node token`"
    )]
    OtherFleet(NodeUrl),
    /// The gateway said no.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer is none.
    #[error("the gateway gave no answer: try again; if the token is then used up, make another")]
    Silent,
    /// It took too long.
    #[error("the gateway at {0} did not answer in time")]
    Late(NodeUrl),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Which node the machine is.
    pub node: NodeId,
    /// Whether it was one before; then the token was not used.
    pub before: bool,
    /// How far this machine's clock is ahead of the gateway's, if that is worth a word.
    pub clock_ahead: Option<TimeDelta>,
}

/// Joins the fleet of the gateways at `urls`, through the first of them that can be reached, unless the machine whose data lies in `data_dir` has joined one before.
///
/// # Errors
/// No gateway is there, or the one that is, is not one that the token means, or refuses the token.
pub async fn join(data_dir: &Path, urls: &[NodeUrl], token: &JoinToken, name: &str) -> Result<Joined, JoinError> {
    if let Some(identity) = Identity::load(data_dir)?.filter(|identity| !identity.is_over()) {
        return Ok(Joined { node: identity.node, before: true, clock_ahead: None });
    }
    let mut joined = Err(JoinError::NoGateway);
    for url in urls {
        let asked = timeout(JOIN_DEADLINE, ask(data_dir, url, urls, token, name)).await;
        joined = asked.unwrap_or_else(|_| Err(JoinError::Late(url.clone())));
        if !matches!(joined, Err(JoinError::Dial { .. })) {
            break;
        }
    }
    joined
}

async fn ask(
    data_dir: &Path,
    url: &NodeUrl,
    urls: &[NodeUrl],
    token: &JoinToken,
    name: &str,
) -> Result<Joined, JoinError> {
    let key = FreshKey::make()?;
    let mut stream = dial::shake(url, Arc::new(tls(token.pin()))).await.map_err(|error| match error {
        DialError::Foreign(_) => JoinError::OtherFleet(url.clone()),
        source => JoinError::Dial { url: url.clone(), source: source.into() },
    })?;
    let authority = authority_of(&stream, token.pin()).ok_or_else(|| JoinError::OtherFleet(url.clone()))?;
    dial::say_hello(&mut stream, NodeId::new(), Kind::Join).await.map_err(|_| JoinError::Silent)?;
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    let request = JoinRequest { secret: token.secret(), name: name.to_owned(), request: key.request()? };
    let request = serde_json::to_vec(&request).expect("a request is words");
    frames.send(Bytes::from(request)).await.map_err(|_| JoinError::Silent)?;
    let answer = frames.next().await.and_then(Result::ok).ok_or(JoinError::Silent)?;
    let credential = match serde_json::from_slice(&answer).map_err(|_| JoinError::Silent)? {
        JoinAnswer::Joined(credential) => credential,
        JoinAnswer::Refused { reason } => return Err(JoinError::Refused(reason)),
    };
    let ahead = Utc::now() - credential.now;
    let node = credential.node;
    Identity::new(url, urls, &authority, &key, credential).keep(data_dir)?;
    Ok(Joined { node, before: false, clock_ahead: Some(ahead).filter(|ahead| ahead.abs() > CLOCK_TOLERANCE) })
}

/// The authority's certificate, which the gateway showed beside its own.
fn authority_of(stream: &Conduit, pin: Digest) -> Option<CertificateDer<'static>> {
    let Conduit::Tls(stream) = stream else { return None };
    let shown = stream.get_ref().1.peer_certificates()?;
    shown.iter().find(|certificate| Digest::of(certificate) == pin).map(|certificate| certificate.clone().into_owned())
}

fn tls(pin: Digest) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }))
        .with_no_client_auth()
}

/// Takes a gateway whose certificate is of the authority with this digest, and checks it as usual otherwise.
#[derive(Debug)]
struct Pinned {
    pin: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|certificate| Digest::of(certificate) == self.pin);
        let authority = authority.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let name = ServerName::try_from(GATEWAY_NAME).expect("a fixed name is valid");
        usual.verify_server_cert(end_entity, &[], &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the link speaks TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::time_provider::TimeProvider;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A clock that is off.
    #[derive(Debug)]
    struct Off {
        behind: bool,
        by: Duration,
    }

    impl TimeProvider for Off {
        fn current_time(&self) -> Option<UnixTime> {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(UnixTime::since_unix_epoch(if self.behind { now - self.by } else { now + self.by }))
        }
    }

    /// A gateway's end whose certificate is valid from a day ago until in ten; where it is, and its authority's digest.
    async fn gateway() -> (NodeUrl, Digest) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = rcgen::date_time_ymd(1970, 1, 1) + now;
        let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = ca.self_signed(&ca_key).unwrap().der().clone();
        let mut params = CertificateParams::new(vec![GATEWAY_NAME.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (now - DAY, now + 10 * DAY);
        let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate, authority.clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = NodeUrl::new("127.0.0.1", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shaken = acceptor.accept(stream).await;
                drop(shaken);
            }
        });
        (url, Digest::of(&authority))
    }

    async fn shake(url: &NodeUrl, pin: Digest, behind: bool, by: Duration) -> Result<(), String> {
        let mut config = tls(pin);
        config.time_provider = Arc::new(Off { behind, by });
        let shaken = dial::shake(url, Arc::new(config)).await;
        shaken.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_clock_that_is_off() {
        let (url, pin) = gateway().await;
        for behind in [true, false] {
            shake(&url, pin, behind, Duration::ZERO).await.unwrap();
            // An hour more or less is no reason to stay away.
            shake(&url, pin, behind, Duration::from_secs(3600)).await.unwrap();
            let far = shake(&url, pin, behind, 11 * DAY).await.unwrap_err();
            assert!(far.contains("clock"), "{far}");
        }
        let directory = tempfile::tempdir().unwrap();
        let other = JoinToken::new([0; 32], Digest::of(b"another authority"));
        let refused = join(directory.path(), std::slice::from_ref(&url), &other, "one").await.unwrap_err();
        assert!(matches!(refused, JoinError::OtherFleet(_)), "{refused}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
