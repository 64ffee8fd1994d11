//! TLS on the public listener: the certificate and its key from files that are looked at every few seconds, and the
//! handshake of a connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use common::digest::Digest;
use common::error::Chain;
use pingora::protocols::Stream;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::listener::STALL;
use super::prompt::Prompt;
use super::seats::dismiss;
use crate::error::StartError;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });

/// The first byte of every connection that speaks TLS: a record of a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a client hears that does not speak TLS.
const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 36\r\nConnection: close\r\n\r\n\
                     this port speaks TLS: use https://\r\n";

/// Where the certificate lies.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// A file with the public listener's certificate and its chain, in PEM. With it the listener speaks TLS and nothing
    /// else, HTTP/2 among it. Looked at every two seconds, so that a new one needs no restart.
    #[arg(long, env = "TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// A file with the certificate's private key, in PEM.
    #[arg(long, env = "TLS_KEY_FILE")]
    pub tls_key_file: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One without the other.
    #[error("TLS_CERT_FILE and TLS_KEY_FILE belong together: set both or neither")]
    Half,
    /// A file is not there, or not ours to read.
    #[error("cannot read {path}: let {setting} name a file that this user may read")]
    Unreadable {
        /// Which.
        path: String,
        /// What named it.
        setting: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in it is no certificate.
    #[error("TLS_CERT_FILE holds no certificate: put the certificate and its chain into it, in PEM")]
    NoCertificate,
    /// What is in it is no key, or one under a password.
    #[error("TLS_KEY_FILE holds no private key: put the certificate's into it, in PEM and without a password")]
    NoKey,
    /// The two do not fit.
    #[error("TLS_KEY_FILE is the key of another certificate: take the one that TLS_CERT_FILE was made with")]
    OtherKey,
    /// A kind of key or certificate that TLS does not know.
    #[error("the certificate or its key cannot be used: make them anew, by ECDSA or RSA")]
    Unusable(#[source] rustls::Error),
}

/// What the two files hold.
struct Pair {
    config: Arc<ServerConfig>,
    /// From when until when, in seconds since 1970.
    valid: (i64, i64),
}

impl Pair {
    fn of(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(TlsError::NoCertificate)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|_| TlsError::NoCertificate)?;
        let valid = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey)?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::OtherKey,
            error => TlsError::Unusable(error),
        })?;
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        // What a client needs to come back is in its own hands: a table of sessions would be all threads'.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Unusable)?;
        Ok(Self { config: Arc::new(config), valid })
    }

    fn warn(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if now > self.valid.1 {
            tracing::warn!("the certificate in TLS_CERT_FILE has expired: clients will refuse it");
        } else if now < self.valid.0 {
            tracing::warn!("the certificate in TLS_CERT_FILE is not valid yet: clients will refuse it");
        }
    }
}

/// Both files, as they were read.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path, setting| {
            let path_text = || path.display().to_string();
            std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path_text(), setting, source })
        };
        Ok(Self { certificate: read(certificate, "TLS_CERT_FILE")?, key: read(key, "TLS_KEY_FILE")? })
    }

    fn digest(&self) -> Digest {
        Digest::of_parts(&[&self.certificate, &self.key])
    }

    fn pair(&self) -> Result<Pair, TlsError> {
        Pair::of(&self.certificate, &self.key)
    }
}

/// How handshakes ended.
struct Handshakes {
    done: IntCounter,
    failed: IntCounter,
    slow: IntCounter,
    plain: IntCounter,
}

/// The listener's TLS.
pub(crate) struct Tls {
    paths: (PathBuf, PathBuf),
    now: ArcSwap<ServerConfig>,
    /// What `now` was made from.
    first: Digest,
    handshakes: Handshakes,
    not_after: IntGauge,
    unusable: IntGauge,
}

impl Tls {
    /// The TLS of these settings, if they ask for any.
    ///
    /// # Errors
    /// The files cannot be used, or the metrics are there already.
    pub(crate) fn open(args: &TlsArgs, registry: &Registry) -> Result<Option<Arc<Self>>, StartError> {
        let paths = match (args.tls_cert_file.clone(), args.tls_key_file.clone()) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            _ => return Err(TlsError::Half.into()),
        };
        let files = Files::read(&paths.0, &paths.1)?;
        let pair = files.pair()?;
        pair.warn();
        let results = IntCounterVec::new(
            Opts::new("dartcloud_gateway_tls_handshakes_total", "Handshakes of public connections, by how they ended"),
            &["result"],
        )?;
        let not_after = IntGauge::new(
            "dartcloud_gateway_certificate_expires_timestamp_seconds",
            "When the public listener's certificate ends, in seconds since 1970",
        )?;
        let unusable = IntGauge::new(
            "dartcloud_gateway_tls_files_unusable",
            "1 while the files hold what cannot be used, and an older certificate is served",
        )?;
        registry.register(Box::new(results.clone()))?;
        registry.register(Box::new(not_after.clone()))?;
        registry.register(Box::new(unusable.clone()))?;
        not_after.set(pair.valid.1);
        let [done, failed, slow, plain] =
            ["done", "failed", "slow", "plain"].map(|result| results.with_label_values(&[result]));
        let handshakes = Handshakes { done, failed, slow, plain };
        let (now, first) = (ArcSwap::new(pair.config), files.digest());
        Ok(Some(Arc::new(Self { paths, now, first, handshakes, not_after, unusable })))
    }

    /// Shakes hands with a client, which may take its time, but not for ever.
    pub(crate) async fn shake(&self, mut stream: Stream) -> Option<TlsStream<Prompt<Stream>>> {
        let shaken = timeout(HANDSHAKE, async {
            let mut first = [0];
            stream.try_peek(&mut first).await?;
            if first != [HANDSHAKE_RECORD] {
                return Ok(Err(stream));
            }
            TlsAcceptor::from(self.now.load_full()).accept(Prompt::new(stream, STALL)).await.map(Ok)
        });
        let counts = &self.handshakes;
        match shaken.await {
            Ok(Ok(Ok(stream))) => {
                counts.done.inc();
                return Some(stream);
            }
            Ok(Ok(Err(plain))) => {
                counts.plain.inc();
                dismiss(plain, PLAIN.as_bytes()).await;
            }
            Ok(Err(error)) => {
                counts.failed.inc();
                tracing::debug!(%error, "no handshake");
            }
            Err(_late) => counts.slow.inc(),
        }
        None
    }

    /// Looks at the files until `end`, and serves what they hold. A pair that cannot be used changes nothing; it is an
    /// error if it still is so at the next look, since the two are not written in one moment.
    pub(crate) async fn follow(self: Arc<Self>, end: CancellationToken) {
        let mut last = Ok(self.first);
        let mut doubt = None;
        while end.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let (certificate, key) = self.paths.clone();
            let Ok(files) = tokio::task::spawn_blocking(move || Files::read(&certificate, &key)).await else { return };
            let look = files.as_ref().map(Files::digest).map_err(ToString::to_string);
            if look == last {
                if let Some(error) = doubt.take() {
                    tracing::error!(error = %Chain(&error), "the new certificate cannot be used: the old one is kept");
                    self.unusable.set(1);
                }
                continue;
            }
            last = look;
            doubt = match files.and_then(|files| files.pair()) {
                Err(error) => Some(error),
                Ok(pair) => {
                    pair.warn();
                    self.not_after.set(pair.valid.1);
                    self.now.store(pair.config);
                    self.unusable.set(0);
                    tracing::info!(not_after = pair.valid.1, "a new certificate is served");
                    None
                }
            };
        }
    }
}

/// Whether the client chose HTTP/2.
pub(crate) fn speaks_http2<S>(stream: &TlsStream<S>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    #[test]
    fn what_files_may_hold() {
        let made = || {
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.example".to_owned()]).unwrap();
            (cert.pem(), signing_key.serialize_pem())
        };
        let ((certificate, key), (other, _)) = (made(), made());
        let check = |certificate: &str, key: &str, expected: Option<&str>| {
            let said = Pair::of(certificate.as_bytes(), key.as_bytes()).err().map(|error| error.to_string());
            assert!(
                match (&said, expected) {
                    (None, None) => true,
                    (Some(said), Some(part)) => said.contains(part),
                    _ => false,
                },
                "{said:?}, expected {expected:?}"
            );
        };
        check(&certificate, &key, None);
        check(&format!("{certificate}{other}"), &key, None);
        check(&other, &key, Some("another certificate"));
        check("", &key, Some("no certificate"));
        check(&key, &key, Some("no certificate"));
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, Some("no certificate"));
        check(&certificate, "", Some("no private key"));
        check(&certificate, &certificate, Some("no private key"));
        check(&certificate, &key[..key.len() / 2], Some("no private key"));
    }

    #[test]
    fn both_files_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let missing = || Some(directory.path().join("missing.pem"));
        let check = |tls_cert_file, tls_key_file, part: &str| {
            let opened = Tls::open(&TlsArgs { tls_cert_file, tls_key_file }, &Registry::new());
            let error = opened.err().unwrap();
            assert!(error.to_string().contains(part) && error.exit_code() == 64, "{error}");
        };
        check(missing(), None, "set both or neither");
        check(None, missing(), "set both or neither");
        check(missing(), missing(), "let TLS_CERT_FILE name a file");
        assert!(Tls::open(&TlsArgs::default(), &Registry::new()).unwrap().is_none());
    }
}
