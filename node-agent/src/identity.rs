//! Who this machine is in a fleet: its key, its certificate, the authorities that it trusts, and where the gateway is.
//! One file under the data directory, which appears whole or not at all.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::base64;
use common::digest::Digest;
use common::ids::NodeId;
use common::node_url::NodeUrl;
use common::protocol::Credential;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

/// The file's name under the data directory.
pub const FILE: &str = "node-identity.json";

/// The identity cannot be read, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot keep this node's identity in {path}: set DATA_DIR to a directory that this user can write")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{0} is damaged: remove it, and let this machine join again with a new token")]
    Damaged(PathBuf),
    /// Its certificate or key is of no use.
    #[error("this node's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// No key can be made.
    #[error("this machine cannot make a key")]
    Key(#[from] rcgen::Error),
}

/// Most authorities that a fleet trusts at once.
const MAX_AUTHORITIES: usize = 4;

/// A machine's place in a fleet.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// Where the gateway is that took it in.
    url: NodeUrl,
    /// Where the fleet's other gateways are, as far as they were named.
    #[serde(default)]
    others: Vec<NodeUrl>,
    /// The certificate of the authority that ours is of, DER as Base64.
    authority: String,
    /// Those of others that the fleet trusts, too, while one takes another's place.
    #[serde(default)]
    also: Vec<String>,
    /// Ours.
    certificate: String,
    /// Its private key, PKCS #8 as Base64.
    key: String,
    /// When we got it, by our own clock, which need not agree with the gateway's.
    received_at: DateTime<Utc>,
    lifetime_seconds: u32,
}

/// A key that has no certificate yet.
pub(crate) struct FreshKey(KeyPair);

impl FreshKey {
    pub(crate) fn make() -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// The signing request for it, DER as Base64.
    pub(crate) fn request(&self) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        // Who it is for is the gateway's to say.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "a node");
        Ok(base64::encode(params.serialize_request(&self.0)?.der()))
    }
}

impl Identity {
    /// The identity of a machine that was taken in by the gateway at `url`, one of these.
    pub(crate) fn new(
        url: &NodeUrl,
        urls: &[NodeUrl],
        authority: &CertificateDer<'_>,
        key: &FreshKey,
        credential: Credential,
    ) -> Self {
        Self {
            node: credential.node,
            url: url.clone(),
            others: urls.iter().filter(|other| *other != url).cloned().collect(),
            authority: base64::encode(authority),
            also: Vec::new(),
            certificate: credential.certificate,
            key: base64::encode(key.0.serialize_der()),
            received_at: Utc::now(),
            lifetime_seconds: credential.lifetime_seconds,
        }
    }

    /// Where the gateways are.
    pub(crate) fn urls(&self) -> Vec<NodeUrl> {
        std::iter::once(&self.url).chain(&self.others).cloned().collect()
    }

    /// The same node with a new certificate.
    pub(crate) fn renewed(&self, key: &FreshKey, credential: Credential) -> Self {
        let is_its = |authority: &&String| credential.authority.is_some_and(|its| pin(authority).ok() == Some(its));
        let authority = self.also.iter().find(is_its).unwrap_or(&self.authority).clone();
        let others = std::iter::once(&self.authority).chain(&self.also).filter(|other| **other != authority);
        Self {
            also: others.cloned().collect(),
            authority,
            certificate: credential.certificate,
            key: base64::encode(key.0.serialize_der()),
            received_at: Utc::now(),
            lifetime_seconds: credential.lifetime_seconds,
            ..self.clone()
        }
    }

    /// The same node, once a gateway said that the fleet trusts these authorities; `None` when that is nothing new. A gateway
    /// that does not name the one that our certificate is of is behind, or has left us behind.
    pub(crate) fn trusting(&self, authorities: &[String]) -> Option<Self> {
        if authorities.len() > MAX_AUTHORITIES || !authorities.contains(&self.authority) {
            return None;
        }
        let also: Vec<_> = authorities.iter().filter(|other| **other != self.authority).cloned().collect();
        (also != self.also).then(|| Self { also, ..self.clone() })
    }

    /// Whether this is an authority that we trust and that our certificate is not of.
    pub(crate) fn may_move_to(&self, authority: &str) -> bool {
        self.also.iter().any(|other| other == authority)
    }

    /// Whether its certificate is of another authority than before.
    pub(crate) fn has_moved_from(&self, before: &Self) -> bool {
        self.authority != before.authority
    }

    /// The digests of the authorities that we trust.
    pub(crate) fn trusted(&self) -> Result<Vec<Digest>, IdentityError> {
        std::iter::once(&self.authority).chain(&self.also).map(|authority| pin(authority)).collect()
    }

    /// The identity that is kept under `data_dir`; `None` when the machine has not joined a fleet.
    pub(crate) fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data_dir.join(FILE);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|_| IdentityError::Damaged(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    /// Keeps the identity, for this user alone. When this returns, a power cut does not lose it.
    pub(crate) fn keep(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let path = data_dir.join(FILE);
        let written = || {
            DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
            let next = path.with_extension("next");
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            File::open(data_dir)?.sync_all()
        };
        written().map_err(|source| IdentityError::File { path, source })
    }

    /// How we show ourselves to a gateway, and by what we know it.
    pub(crate) fn tls(&self) -> Result<ClientConfig, IdentityError> {
        let mut roots = RootCertStore::empty();
        for authority in std::iter::once(&self.authority).chain(&self.also) {
            roots.add(CertificateDer::from(bytes(authority)?)).map_err(IdentityError::Certificate)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(IdentityError::Certificate)?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from(bytes(&self.certificate)?)],
                PrivatePkcs8KeyDer::from(bytes(&self.key)?).into(),
            );
        config.map_err(IdentityError::Certificate)
    }

    /// Whether the certificate has ended, as far as this machine's clock knows.
    pub(crate) fn is_over(&self) -> bool {
        self.age(Utc::now()) >= Duration::from_secs(self.lifetime_seconds.into())
    }

    /// When the certificate ends, by this machine's clock.
    pub(crate) fn expires_at(&self) -> DateTime<Utc> {
        self.received_at + Duration::from_secs(self.lifetime_seconds.into())
    }

    /// How long until the certificate is to be renewed.
    pub(crate) fn until_renewal(&self) -> Duration {
        until_renewal(self.age(Utc::now()), self.lifetime_seconds)
    }

    /// Of a clock that was set back nothing is believed: the certificate counts as old.
    fn age(&self, now: DateTime<Utc>) -> Duration {
        (now - self.received_at).to_std().unwrap_or(Duration::from_secs(self.lifetime_seconds.into()) * 2 / 3)
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, IdentityError> {
    base64::decode(text).map_err(|_| IdentityError::Damaged(PathBuf::from(FILE)))
}

/// The digest of an authority's certificate.
fn pin(authority: &str) -> Result<Digest, IdentityError> {
    Ok(Digest::of(&bytes(authority)?))
}

/// At two thirds of its life.
fn until_renewal(age: Duration, lifetime_seconds: u32) -> Duration {
    (Duration::from_secs(lifetime_seconds.into()) * 2 / 3).saturating_sub(age)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn renewal_is_due_at_two_thirds() {
        let check = |age, expected| {
            assert_eq!(until_renewal(Duration::from_secs(age), 30), Duration::from_secs(expected), "{age}");
        };
        check(0, 20);
        check(15, 5);
        check(20, 0);
        check(99, 0);
    }

    /// The certificate of an authority.
    fn authority() -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().self_signed(&key).unwrap().der().clone()
    }

    /// What a gateway gives out for a key, and that names this authority.
    fn credential(key: &FreshKey, authority: Option<&CertificateDer<'_>>) -> Credential {
        Credential {
            node: NodeId::new(),
            certificate: base64::encode(CertificateParams::default().self_signed(&key.0).unwrap().der()),
            authority: authority.map(|authority| Digest::of(authority)),
            lifetime_seconds: 60,
            now: Utc::now(),
        }
    }

    #[test]
    fn a_node_moves_to_another_authority() {
        let url: NodeUrl = "https://gateway.example:9443".parse().unwrap();
        let (key, [old, new, other]) = (FreshKey::make().unwrap(), [(); 3].map(|()| authority()));
        let joined = Identity::new(&url, std::slice::from_ref(&url), &old, &key, credential(&key, Some(&old)));
        let said = |authorities: &[&CertificateDer<'_>]| authorities.iter().map(base64::encode).collect::<Vec<_>>();
        let check = |identity: &Identity, trusted: &[&CertificateDer<'_>]| {
            let expected: Vec<_> = trusted.iter().map(|authority| Digest::of(authority)).collect();
            assert_eq!(identity.trusted().unwrap(), expected);
            assert!(identity.tls().is_ok());
        };
        check(&joined, &[&old]);
        for nothing in [said(&[&old]), said(&[&new]), said(&[]), said(&[&old, &new, &other, &new, &other])] {
            assert!(joined.trusting(&nothing).is_none(), "{nothing:?}");
        }
        let told = joined.trusting(&said(&[&new, &old])).unwrap();
        check(&told, &[&old, &new]);
        assert!(told.trusting(&said(&[&new, &old])).is_none());
        let may_move = [&old, &new, &other].map(|authority| told.may_move_to(&base64::encode(authority)));
        assert_eq!(may_move, [false, true, false]);
        // By a gateway that does not know it yet, or that does not say.
        for same in [Some(&old), Some(&other), None] {
            let renewed = told.renewed(&key, credential(&key, same));
            check(&renewed, &[&old, &new]);
            assert!(!renewed.has_moved_from(&told));
        }
        let moved = told.renewed(&key, credential(&key, Some(&new)));
        check(&moved, &[&new, &old]);
        assert!(moved.has_moved_from(&told));
        // One gateway is behind, the other knows that the rotation is over.
        assert!(moved.trusting(&said(&[&old])).is_none());
        check(&moved.trusting(&said(&[&new])).unwrap(), &[&new]);
        let nonsense = told.trusting(&[said(&[&old]), vec!["nonsense".to_owned()]].concat()).unwrap();
        assert!(nonsense.tls().is_err());
    }

    #[test]
    fn only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("new");
        assert!(Identity::load(&data_dir).unwrap().is_none());
        let (key, authority) = (FreshKey::make().unwrap(), authority());
        let credential = credential(&key, None);
        let url: NodeUrl = "https://gateway.example:9443".parse().unwrap();
        let other: NodeUrl = "https://other.example:9443".parse().unwrap();
        let urls = [other.clone(), url.clone()];
        let identity = Identity::new(&url, &urls, &authority, &key, credential);
        assert_eq!(identity.urls(), [url, other]);
        for _ in 0..2 {
            identity.keep(&data_dir).unwrap();
            let mode = std::fs::metadata(data_dir.join(FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let kept = Identity::load(&data_dir).unwrap().unwrap();
        assert!(kept.node == identity.node && kept.key == identity.key && !kept.is_over());
        // As agents of before kept it.
        let text = std::fs::read_to_string(data_dir.join(FILE)).unwrap();
        let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
        older.as_object_mut().unwrap().remove("also").unwrap();
        assert_eq!(serde_json::from_value::<Identity>(older).unwrap().trusted().unwrap(), [Digest::of(&authority)]);
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 1, "nothing temporary is left");
        std::fs::write(data_dir.join(FILE), "{}").unwrap();
        assert!(matches!(Identity::load(&data_dir), Err(IdentityError::Damaged(_))));
    }
}
