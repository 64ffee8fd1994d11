//! The authorities that the fleet trusts: the one that certifies, and, from a rotation to its end, the one before it. What
//! the node port shows is known to whoever trusts either.

use std::sync::Arc;

use common::base64;
use common::digest::Digest;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use store::Store;
use store::fleet as kept;

use super::authority::{Authority, AuthorityError, make};
use crate::config::Secrets;

/// Those that are trusted, and how the node port shows itself by them.
pub(crate) struct Authorities {
    pub(crate) current: Authority,
    pub(crate) former: Option<Authority>,
    /// With a key of this gateway's own.
    pub(super) tls: Arc<ServerConfig>,
}

impl Authorities {
    /// The fleet's; the first gateway that asks makes the first one. The node port bears these names.
    ///
    /// # Errors
    /// The database fails, or one was sealed under another secret.
    pub(crate) async fn open(store: &dyn Store, secrets: &Secrets, names: Vec<String>) -> Result<Self, AuthorityError> {
        let kept = match store.authorities().await? {
            Some(kept) => kept,
            None => store.found_authority(make(&secrets.current)?).await?,
        };
        Self::unseal(kept, secrets, names)
    }

    /// As they are kept.
    ///
    /// # Errors
    /// One was sealed under another secret.
    pub(super) fn unseal(
        kept: kept::Authorities,
        secrets: &Secrets,
        names: Vec<String>,
    ) -> Result<Self, AuthorityError> {
        let current = Authority::unseal(secrets, kept.current)?;
        let former = kept.former.map(|former| Authority::unseal(secrets, former)).transpose()?;
        let tls = Arc::new(server_config(&current, former.as_ref(), names)?);
        Ok(Self { current, former, tls })
    }

    /// Whether it is these that are kept.
    pub(super) fn are(&self, kept: &kept::Authorities) -> bool {
        let certificates = (&*self.current.certificate, self.former.as_ref().map(|former| &*former.certificate));
        certificates == (&*kept.current.certificate, kept.former.as_ref().map(|former| &*former.certificate))
    }

    /// Their certificates as they cross the link, the current one's first.
    pub(super) fn certificates(&self) -> Vec<String> {
        self.all().map(|one| base64::encode(&one.certificate)).collect()
    }

    /// Of which of them a certificate is; TLS has found that it is of one.
    pub(super) fn of(&self, certificate: &CertificateDer<'_>) -> &Authority {
        self.former.as_ref().filter(|former| former.is_of(certificate)).unwrap_or(&self.current)
    }

    /// Goes on with connections by those that `before` trusts, too.
    pub(super) fn go_on(&mut self, before: &Self) {
        for authority in std::iter::once(&mut self.current).chain(&mut self.former) {
            if let Some(same) = before.all().find(|other| other.certificate == authority.certificate) {
                authority.trusted = same.trusted.clone();
            }
        }
    }

    /// Ends connections by those that `next` does not trust; whether there is such a one.
    pub(super) fn end(&self, next: &Self) -> bool {
        let is_over = |one: &&Authority| !next.all().any(|other| other.certificate == one.certificate);
        self.all().filter(is_over).for_each(|one| one.trusted.cancel());
        self.all().any(|one| is_over(&one))
    }

    /// The current one first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Authority> {
        std::iter::once(&self.current).chain(&self.former)
    }

    /// Which of them certifies a node that trusts these, and has shown a certificate of `has`.
    pub(super) fn certifier(&self, trusts: &[Digest], has: Option<Digest>) -> &Authority {
        match &self.former {
            Some(former) if !knows(self.current.pin(), trusts, has) => former,
            _ => &self.current,
        }
    }
}

/// Whether a node trusts the authority `current`. An older agent does not say, and trusts the one by which it joined.
fn knows(current: Digest, trusts: &[Digest], has: Option<Digest>) -> bool {
    if trusts.is_empty() { has == Some(current) } else { trusts.contains(&current) }
}

/// TLS for the node port, with a fresh key of this gateway's. Whoever has no certificate is let in, and may ask to join; a
/// certificate of anybody else's is refused.
fn server_config(
    current: &Authority,
    former: Option<&Authority>,
    names: Vec<String>,
) -> Result<ServerConfig, AuthorityError> {
    let key = KeyPair::generate()?;
    let mut shown = vec![current.certify_gateway(&key, names)?];
    // Before the current one's own, so that a node finds its way to the one that it trusts.
    shown.extend(former.map(|former| former.vouch_for(current)).transpose()?);
    shown.push(current.certificate.clone());

    let tls = |error: rustls::Error| AuthorityError::Tls(error.into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in std::iter::once(current).chain(former) {
        roots.add(authority.certificate.clone()).map_err(tls)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| AuthorityError::Tls(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(shown, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .map_err(tls)?;
    // A session that is resumed would bring a certificate along that nobody looks at again.
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use common::protocol::GATEWAY_NAME;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn secrets() -> Secrets {
        Secrets { current: "a secret".to_owned(), previous: None }
    }

    fn authorities(former: Option<kept::Authority>) -> (kept::Authorities, Authorities) {
        let kept = kept::Authorities { current: make("a secret").unwrap(), former };
        let unsealed = Authorities::unseal(kept.clone(), &secrets(), vec![]).unwrap();
        (kept, unsealed)
    }

    #[test]
    fn who_certifies_whom() {
        let (first, _) = authorities(None);
        let (_, both) = authorities(Some(first.current.clone()));
        let (old, new, other) = (Digest::of(&first.current.certificate), both.current.pin(), Digest::of(b"other"));
        let check = |trusts: &[Digest], has, expected| {
            assert_eq!(both.certifier(trusts, has).pin(), expected, "{trusts:?} {has:?}");
        };
        check(&[new, old], Some(old), new);
        check(&[old, new], Some(new), new);
        check(&[old], Some(old), old);
        check(&[old], Some(new), old);
        check(&[other], None, old);
        // An older agent, that joined before the rotation or after it.
        check(&[], Some(old), old);
        check(&[], None, old);
        check(&[], Some(new), new);
        let (kept, one) = authorities(None);
        assert_eq!(one.certifier(&[old], Some(old)).pin(), Digest::of(&kept.current.certificate));
    }

    #[test]
    fn whoever_trusts_either_knows_the_gateway() {
        let (first, one) = authorities(None);
        let (kept, both) = authorities(Some(first.current.clone()));
        assert!(one.are(&first) && both.are(&kept) && !one.are(&kept));
        assert_eq!(both.certificates(), [&kept.current, &first.current].map(|one| base64::encode(&one.certificate)));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let check = |former: Option<&Authority>, trusted: &[u8], chain: bool, expected: bool| {
            let key = KeyPair::generate().unwrap();
            let leaf = both.current.certify_gateway(&key, vec![]).unwrap();
            let vouched = former.map(|former| former.vouch_for(&both.current).unwrap());
            let shown: Vec<_> = vouched.into_iter().chain([both.current.certificate.clone()]).collect();
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(trusted.to_vec())).unwrap();
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let name = ServerName::try_from(GATEWAY_NAME).unwrap();
            let shown = if chain { shown.as_slice() } else { &[] };
            let verified = verifier.build().unwrap().verify_server_cert(&leaf, shown, &name, &[], UnixTime::now());
            assert_eq!(verified.is_ok(), expected, "{verified:?}");
        };
        let (old, new) = (&first.current.certificate, &kept.current.certificate);
        check(both.former.as_ref(), new, true, true);
        check(both.former.as_ref(), old, true, true);
        // So does a machine that joins, which looks at the authority alone.
        check(both.former.as_ref(), new, false, true);
        check(both.former.as_ref(), old, false, false);
        // After the end of the rotation.
        check(None, new, true, true);
        check(None, old, true, false);
    }

    #[test]
    fn connections_end_with_the_trust_in_their_authority() {
        let (first, one) = authorities(None);
        let (kept, mut both) = authorities(Some(first.current));
        let of = |authorities: &Authorities| {
            authorities.current.certify_gateway(&KeyPair::generate().unwrap(), vec![]).unwrap()
        };
        assert_eq!([&of(&one), &of(&both)].map(|one| both.of(one).pin() == both.current.pin()), [false, true]);
        both.go_on(&one);
        assert!(!one.end(&both));
        let before = [&one.current, &both.current].map(|authority| authority.trusted.clone());
        assert_eq!(before.each_ref().map(CancellationToken::is_cancelled), [false, false]);
        let kept = kept::Authorities { former: None, ..kept };
        let mut last = Authorities::unseal(kept, &secrets(), vec![]).unwrap();
        last.go_on(&both);
        assert!(both.end(&last));
        assert_eq!(before.each_ref().map(CancellationToken::is_cancelled), [true, false]);
    }
}
