//! The fleet's own certificate authority: made once, kept in the database with its key sealed under one that
//! `JWT_SECRET` gives, so that every gateway of the fleet has it. It certifies nodes, and this gateway to them. Which
//! authorities are trusted, and for how long, `authorities` knows.

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
use store::Store;
use store::fleet::{self as kept, CertificateFacts};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

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
    /// Its certificate is none.
    #[error("the certificate of the fleet's authority cannot be read")]
    Unreadable,
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

/// An authority, unsealed.
pub(crate) struct Authority {
    pub(super) certificate: CertificateDer<'static>,
    /// By which its certificates name it: no two authorities have the same.
    name: String,
    issuer: Issuer<'static, KeyPair>,
    /// Cancelled when it is trusted no more: connections by its certificates end.
    pub(super) trusted: CancellationToken,
}

/// A certificate that was made for a node.
pub(crate) struct Issued {
    pub(crate) der: Vec<u8>,
    pub(crate) facts: CertificateFacts,
    pub(crate) authority: Digest,
}

impl Authority {
    /// An authority as it is kept.
    ///
    /// # Errors
    /// It was sealed under another secret.
    pub(super) fn unseal(secrets: &Secrets, kept: kept::Authority) -> Result<Self, AuthorityError> {
        let key = match (unseal(&secrets.current, &kept), &secrets.previous) {
            (Err(AuthorityError::Sealed), Some(previous)) => unseal(previous, &kept)?,
            (unsealed, _) => unsealed?,
        };
        let certificate = CertificateDer::from(kept.certificate);
        let name = name_of(&certificate).ok_or(AuthorityError::Unreadable)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, name, issuer, trusted: CancellationToken::new() })
    }

    /// SHA-256 of the certificate: what join tokens pin.
    pub(crate) fn pin(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// From when until when it is valid, in seconds since 1970.
    pub(crate) fn validity(&self) -> Option<(i64, i64)> {
        let (_, read) = X509Certificate::from_der(&self.certificate).ok()?;
        let validity = read.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    }

    /// Whether a certificate names this authority as its own. TLS has checked that it is of one that is trusted.
    pub(super) fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
        common_name(certificate.issuer()) == Some(self.name.as_str())
    }

    /// A certificate by which nodes know this gateway, under these names and the one that they ask for.
    pub(super) fn certify_gateway(
        &self,
        key: &KeyPair,
        names: Vec<String>,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let names = std::iter::once(GATEWAY_NAME.to_owned()).chain(names).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names)?;
        lasts(&mut params, Utc::now(), BACKDATE, LIFETIME);
        params.distinguished_name.push(DnType::CommonName, GATEWAY_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// The certificate of `other`, by this authority: whoever trusts this one knows the other's certificates by it.
    pub(super) fn vouch_for(&self, other: &Self) -> Result<CertificateDer<'static>, AuthorityError> {
        Ok(describe(&other.name).signed_by(other.issuer.key(), &self.issuer)?.der().clone())
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
        Ok(Issued { der: certificate.der().to_vec(), facts, authority: self.pin() })
    }
}

/// The node that a certificate of ours is for; TLS has checked that it is ours.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    name_of(certificate)?.parse().ok()
}

/// Who a certificate is for.
fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    common_name(certificate.subject()).map(str::to_owned)
}

fn common_name<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    name.iter_common_name().next()?.as_str().ok()
}

/// Whether the authority was sealed under this secret.
pub(crate) fn opens(secret: &str, kept: &kept::Authority) -> bool {
    unseal(secret, kept).is_ok()
}

/// Seals the authorities anew that are sealed under the secret before, so that this is not needed any more. Of several
/// gateways that do so at once one is first, and what the others made is not kept.
///
/// # Errors
/// The database or a cipher fails. That no secret opens it is told when it is opened.
pub(crate) async fn reseal(store: &dyn Store, secrets: &Secrets) -> Result<(), AuthorityError> {
    let Some(previous) = &secrets.previous else { return Ok(()) };
    let Some(kept) = store.authorities().await? else { return Ok(()) };
    for kept in std::iter::once(kept.current).chain(kept.former) {
        if opens(&secrets.current, &kept) {
            continue;
        }
        let Ok(key) = unseal(previous, &kept) else { continue };
        let sealed = seal(&secrets.current, &kept.certificate, &key)?;
        store.reseal_authority(&kept.sealed_key, &sealed).await?;
        tracing::info!("the fleet's authority is sealed under the new JWT_SECRET");
    }
    Ok(())
}

fn seal(secret: &str, certificate: &[u8], key: &KeyPair) -> Result<Vec<u8>, AuthorityError> {
    let mut text = key.serialize_der();
    let nonce = sealing_key(secret)?.seal_in_place_append_tag(Aad::from(certificate), &mut text)?;
    Ok([nonce.as_ref(), &text[..]].concat())
}

/// Makes an authority.
pub(super) fn make(secret: &str) -> Result<kept::Authority, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = describe(&format!("Dart Cloud fleet {:016x}", rand::random::<u64>())).self_signed(&key)?;
    let certificate = certificate.der().to_vec();
    let sealed_key = seal(secret, &certificate, &key)?;
    Ok(kept::Authority { certificate, sealed_key })
}

/// What the certificate of an authority says of it.
fn describe(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    lasts(&mut params, Utc::now(), BACKDATE, LIFETIME);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
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
        Authority::unseal(&Secrets { current: secret.to_owned(), previous: None }, kept.clone())
    }

    #[test]
    fn only_the_same_secret_unseals() {
        let kept = make("one secret").unwrap();
        assert_eq!(open("one secret", &kept).unwrap().pin(), Digest::of(&kept.certificate));
        assert!(matches!(open("another secret", &kept), Err(AuthorityError::Sealed)));
        let secrets = Secrets { current: "another secret".to_owned(), previous: Some("one secret".to_owned()) };
        assert!(Authority::unseal(&secrets, kept.clone()).is_ok());
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
        assert_eq!(issued.authority, authority.pin());
        let other = open("a secret", &make("a secret").unwrap()).unwrap();
        assert_eq!([&authority, &other].map(|one| one.is_of(&CertificateDer::from(issued.der.clone()))), [true, false]);
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
