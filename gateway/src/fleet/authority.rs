//! The fleet's own certificate authority: made once, kept in the database with its key sealed under one that
//! `JWT_SECRET` gives, so that every gateway of the fleet has it. It certifies nodes, and this gateway to them.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;
use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::ids::NodeId;
use common::protocol::GATEWAY_NAME;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use store::Store;
use store::fleet::{self as kept, CertificateFacts};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::Secrets;

/// How long before its making a node's certificate is already valid: a node's clock may be off by more than an hour.
const NODE_BACKDATE: Duration = Duration::from_secs(2 * 60 * 60);

/// The same for the authority and for gateways.
const BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority lives. A gateway's own certificate, made at each start, lives as long.
const LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// What the derived key is for; a key for something else says something else.
const SALT: &[u8] = b"dartcloud fleet authority, 1";

/// The authority cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// The database failed.
    #[error("the fleet's authority cannot be read")]
    Store(#[from] store::Error),
    /// It was sealed under another secret.
    #[error(
        "the fleet's authority was made under another JWT_SECRET: set that one again, or as JWT_SECRET_PREVIOUS; if it \
         is lost, delete the row of fleet_authority and let every node join again"
    )]
    Sealed,
    /// A certificate cannot be made or read.
    #[error("a certificate of the fleet cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("the node port's TLS cannot be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system gives no random bytes, or a cipher fails.
    #[error("the system's cryptography failed")]
    Cryptography,
}

impl From<Unspecified> for AuthorityError {
    fn from(_: Unspecified) -> Self {
        Self::Cryptography
    }
}

/// The authority, unsealed.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was made for a node.
pub(crate) struct Issued {
    pub(crate) der: Vec<u8>,
    pub(crate) facts: CertificateFacts,
}

impl Authority {
    /// The fleet's authority; the first gateway that asks makes it.
    ///
    /// # Errors
    /// The database fails, or the authority was sealed under another secret.
    pub(crate) async fn open(store: &dyn Store, secret: &str) -> Result<Self, AuthorityError> {
        let kept = match store.authority().await? {
            Some(kept) => kept,
            None => store.found_authority(make(secret)?).await?,
        };
        let key = unseal(secret, &kept)?;
        let certificate = CertificateDer::from(kept.certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// SHA-256 of the certificate: what join tokens pin.
    pub(crate) fn pin(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// TLS for the node port, with a fresh key of this gateway's. Whoever has no certificate is let in, and may ask to
    /// join; a certificate of anybody else's is refused.
    pub(crate) fn server_config(&self, names: Vec<String>) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate()?;
        let names = std::iter::once(GATEWAY_NAME.to_owned()).chain(names).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names)?;
        lasts(&mut params, Utc::now(), BACKDATE, LIFETIME);
        params.distinguished_name.push(DnType::CommonName, GATEWAY_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();

        let tls = |error: rustls::Error| AuthorityError::Tls(error.into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(tls)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| AuthorityError::Tls(error.into()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate, self.certificate.clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .map_err(tls)?;
        // A session that is resumed would bring a certificate along that nobody looks at again.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// A certificate for the key of a signing request. Of the request only the key is taken, and the proof that the
    /// node has it.
    pub(crate) fn issue(&self, node: NodeId, request: &[u8], lifetime: Duration) -> Result<Issued, rcgen::Error> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let now = Utc::now();
        let mut params = CertificateParams::default();
        lasts(&mut params, now, NODE_BACKDATE, lifetime);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut serial: [u8; 16] = rand::random();
        // A serial number is positive.
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
        let facts = CertificateFacts { serial, expires_at: now + lifetime };
        Ok(Issued { der: certificate.der().to_vec(), facts })
    }
}

/// The node that a certificate of ours is for; TLS has checked that it is ours.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    certificate.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()
}

/// Whether the authority was sealed under this secret.
pub(crate) fn opens(secret: &str, kept: &kept::Authority) -> bool {
    unseal(secret, kept).is_ok()
}

/// Seals the authority anew where it is sealed under the secret before, so that this is not needed any more. Of several
/// gateways that do so at once one is first, and what the others made is not kept.
///
/// # Errors
/// The database or a cipher fails. That no secret opens it is told when it is opened.
pub(crate) async fn reseal(store: &dyn Store, secrets: &Secrets) -> Result<(), AuthorityError> {
    let Some(previous) = &secrets.previous else { return Ok(()) };
    let Some(kept) = store.authority().await? else { return Ok(()) };
    if opens(&secrets.current, &kept) {
        return Ok(());
    }
    let Ok(key) = unseal(previous, &kept) else { return Ok(()) };
    let sealed = seal(&secrets.current, &kept.certificate, &key)?;
    store.reseal_authority(&kept.sealed_key, &sealed).await?;
    tracing::info!("the fleet's authority is sealed under the new JWT_SECRET");
    Ok(())
}

fn seal(secret: &str, certificate: &[u8], key: &KeyPair) -> Result<Vec<u8>, AuthorityError> {
    let mut text = key.serialize_der();
    let nonce = sealing_key(secret)?.seal_in_place_append_tag(Aad::from(certificate), &mut text)?;
    Ok([nonce.as_ref(), &text[..]].concat())
}

fn make(secret: &str) -> Result<kept::Authority, AuthorityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    lasts(&mut params, Utc::now(), BACKDATE, LIFETIME);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Dart Cloud fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?.der().to_vec();
    let sealed_key = seal(secret, &certificate, &key)?;
    Ok(kept::Authority { certificate, sealed_key })
}

fn unseal(secret: &str, kept: &kept::Authority) -> Result<KeyPair, AuthorityError> {
    let (nonce, text) = kept.sealed_key.split_first_chunk::<NONCE_LEN>().ok_or(AuthorityError::Sealed)?;
    let mut text = text.to_vec();
    let opened = sealing_key(secret)?.open_in_place(Nonce::from(nonce), Aad::from(&kept.certificate), &mut text);
    let key = PrivatePkcs8KeyDer::from(&*opened.map_err(|_| AuthorityError::Sealed)?);
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)?)
}

fn sealing_key(secret: &str) -> Result<RandomizedNonceKey, Unspecified> {
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret.as_bytes());
    let mut key = [0; 32];
    derived.expand(&[b"private key"], &AES_256_GCM)?.fill(&mut key)?;
    RandomizedNonceKey::new(&AES_256_GCM, &key)
}

fn lasts(params: &mut CertificateParams, now: DateTime<Utc>, backdate: Duration, lifetime: Duration) {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = now - backdate;
    params.not_after = now + lifetime;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(secret: &str, kept: &kept::Authority) -> Result<Authority, AuthorityError> {
        let key = unseal(secret, kept)?;
        let certificate = CertificateDer::from(kept.certificate.clone());
        Ok(Authority { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate })
    }

    #[test]
    fn only_the_same_secret_unseals() {
        let kept = make("one secret").unwrap();
        assert_eq!(open("one secret", &kept).unwrap().pin(), Digest::of(&kept.certificate));
        assert!(matches!(open("another secret", &kept), Err(AuthorityError::Sealed)));
        let mut cut = kept.clone();
        cut.sealed_key.truncate(5);
        assert!(matches!(open("one secret", &cut), Err(AuthorityError::Sealed)));
        let mut swapped = kept;
        swapped.certificate = make("one secret").unwrap().certificate;
        assert!(matches!(open("one secret", &swapped), Err(AuthorityError::Sealed)));
    }

    #[test]
    fn a_certificate_names_its_node() {
        let authority = open("a secret", &make("a secret").unwrap()).unwrap();
        let (node, key) = (NodeId::new(), KeyPair::generate().unwrap());
        // What the request asks for beside the key counts for nothing.
        let wishes = CertificateParams::new(vec![GATEWAY_NAME.to_owned()]).unwrap();
        let request = wishes.serialize_request(&key).unwrap();
        let issued = authority.issue(node, request.der(), Duration::from_secs(60)).unwrap();
        assert_eq!(node_of(&CertificateDer::from(issued.der.clone())), Some(node));
        let (_, read) = X509Certificate::from_der(&issued.der).unwrap();
        assert!(read.subject_alternative_name().unwrap().is_none() && !read.is_ca());
        assert_eq!(read.raw_serial_as_string().replace(':', ""), issued.facts.serial);
        let now = Utc::now().timestamp();
        assert!(read.validity().not_before.timestamp() < now - 3600);
        assert!((now + 50..now + 70).contains(&read.validity().not_after.timestamp()));

        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(authority.issue(node, &forged, Duration::from_secs(60)).is_err());
        assert!(authority.issue(node, b"", Duration::from_secs(60)).is_err());
        assert_eq!(node_of(&authority.certificate), None);
    }
}
