//! Who calls: JWTs, signed with HS256 and the platform's own secret. The tenant comes from here and from nowhere
//! else.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::ids::{SessionId, UserId};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::sessions::EndedSessions;
use super::verified::{Bearer, Verified};
use crate::config::Secrets;

/// The one issuer.
const ISSUER: &str = "dartcloud";

/// How far the clocks of gateways may be apart, in seconds.
const LEEWAY_SECONDS: u64 = 5;

/// What stands before a token, in any case.
const BEARER: &[u8] = b"Bearer ";

/// Longest token that is looked at, in bytes; ours have about 270.
const MAX_TOKEN_BYTES: usize = 2048;

/// Why a credential was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// There is none.
    #[error("this needs a token: send `Authorization: Bearer <access token>`")]
    Missing,
    /// It was good once.
    #[error("the token has expired: log in again, or use the refresh token")]
    Expired,
    /// It was good until its session ended.
    #[error("the session of this token has ended: log in again")]
    Ended,
    /// It is not one of ours.
    #[error("the token is not valid: log in again")]
    Invalid,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    /// The session; older versions issued tokens without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<SessionId>,
    iss: String,
    iat: u64,
    exp: u64,
}

thread_local! {
    static VERIFIED: RefCell<Verified> = RefCell::default();
}

/// The number of the next identity of this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Issues and verifies tokens. One algorithm, one issuer, required claims.
pub(crate) struct Identity {
    /// Which of this process's it is.
    number: u64,
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// Of the secret before, while it is changed.
    previous: Option<DecodingKey>,
    header: Header,
    validation: Validation,
    ended: Arc<EndedSessions>,
}

impl Identity {
    /// An identity on these secrets, whose strength the caller has checked. Tokens of sessions that have `ended` it refuses.
    pub(crate) fn new(secrets: &Secrets, ended: Arc<EndedSessions>) -> Self {
        let decoding = |secret: &String| DecodingKey::from_secret(secret.as_bytes());
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_required_spec_claims(&["sub", "exp", "iss"]);
        validation.set_issuer(&[ISSUER]);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            encoding: EncodingKey::from_secret(secrets.current.as_bytes()),
            decoding: decoding(&secrets.current),
            previous: secrets.previous.as_ref().map(decoding),
            header: Header::new(Algorithm::HS256),
            validation,
            ended,
        }
    }

    /// A token of `user` that is good for `lifetime`, but not longer than his `session`.
    pub(crate) fn issue(&self, user: UserId, session: SessionId, lifetime: Duration) -> String {
        let now = now();
        let exp = now + lifetime.as_secs();
        let claims = Claims { sub: user, sid: Some(session), iss: ISSUER.to_owned(), iat: now, exp };
        jsonwebtoken::encode(&self.header, &claims, &self.encoding).expect("HS256 signs any five plain claims")
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// It has expired, its session has ended, or it is not one of ours.
    pub(crate) fn verify(&self, token: &[u8]) -> Result<UserId, Denied> {
        let Bearer { user, session } = self.read(token)?;
        if session.is_some_and(|session| self.ended.has(session)) { Err(Denied::Ended) } else { Ok(user) }
    }

    /// What a token says that has not expired, whether or not its session has ended.
    fn read(&self, token: &[u8]) -> Result<Bearer, Denied> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Denied::Invalid);
        }
        if let Some(bearer) = VERIFIED.with_borrow(|verified| verified.bearer(self.number, token, now())) {
            return Ok(bearer);
        }
        let decode = |key| jsonwebtoken::decode::<Claims>(token, key, &self.validation);
        let found = match (decode(&self.decoding), &self.previous) {
            (Err(error), Some(previous)) if matches!(error.kind(), ErrorKind::InvalidSignature) => decode(previous),
            (found, _) => found,
        };
        match found {
            Ok(found) => {
                let Claims { sub: user, sid: session, exp, .. } = found.claims;
                let (bearer, until) = (Bearer { user, session }, exp.saturating_add(LEEWAY_SECONDS));
                VERIFIED.with_borrow_mut(|verified| verified.keep(self.number, token, bearer, until));
                Ok(bearer)
            }
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => Err(Denied::Expired),
            Err(_) => Err(Denied::Invalid),
        }
    }

    /// Whose bearer token a request bears.
    ///
    /// # Errors
    /// It bears none, two, or one that is not taken.
    pub(crate) fn bearer(&self, headers: &HeaderMap) -> Result<UserId, Denied> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or(Denied::Missing)?;
        if values.next().is_some() {
            return Err(Denied::Invalid);
        }
        let (scheme, token) = value.as_bytes().split_at_checked(BEARER.len()).ok_or(Denied::Missing)?;
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return Err(Denied::Missing);
        }
        self.verify(token.trim_ascii())
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "another secret of at least 32 bytes";

    fn of(current: &str, previous: Option<&str>) -> Identity {
        let secrets = Secrets { current: current.to_owned(), previous: previous.map(str::to_owned) };
        Identity::new(&secrets, Arc::default())
    }

    fn sign(header: &Header, claims: &serde_json::Value, secret: &str) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn check(claims: &serde_json::Value, expected: Result<(), Denied>) {
        let token = sign(&Header::new(Algorithm::HS256), claims, SECRET);
        assert_eq!(of(SECRET, None).verify(token.as_bytes()).map(|_| ()), expected, "{claims}");
    }

    #[test]
    fn what_we_issue_we_take() {
        let identity = of(SECRET, None);
        let user = UserId::new();
        let token = identity.issue(user, SessionId::new(), Duration::from_secs(60));
        // The second time it is known.
        assert_eq!([identity.verify(token.as_bytes()), identity.verify(token.as_bytes())], [Ok(user); 2]);
        assert_eq!(of(OTHER, None).verify(token.as_bytes()), Err(Denied::Invalid));
    }

    #[test]
    fn a_secret_is_changed() {
        let (user, minute) = (UserId::new(), Duration::from_secs(60));
        let check = |by: &Identity, from: &Identity, expected| {
            let token = from.issue(user, SessionId::new(), minute);
            // The second time it may be known.
            assert_eq!([by.verify(token.as_bytes()), by.verify(token.as_bytes())], [expected; 2]);
        };
        let (old, both, new) = (of(SECRET, None), of(OTHER, Some(SECRET)), of(OTHER, None));
        check(&both, &old, Ok(user));
        check(&both, &both, Ok(user));
        check(&new, &both, Ok(user));
        check(&old, &both, Err(Denied::Invalid));
        check(&new, &old, Err(Denied::Invalid));
        check(&both, &of("a third secret that nobody has named", None), Err(Denied::Invalid));
        let claims = json!({"sub": user, "iss": ISSUER, "iat": now(), "exp": now() - 60});
        let expired = sign(&Header::new(Algorithm::HS256), &claims, SECRET);
        assert_eq!(both.verify(expired.as_bytes()), Err(Denied::Expired));
    }

    #[test]
    fn claims_are_required() {
        let user = UserId::new();
        let good = json!({"sub": user, "iss": ISSUER, "iat": now(), "exp": now() + 60});
        check(&good, Ok(()));
        for claim in ["sub", "iss", "iat", "exp"] {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(claim);
            check(&without, Err(Denied::Invalid));
        }
        check(&json!({"sub": user, "iss": ISSUER, "iat": now(), "exp": now() - 60}), Err(Denied::Expired));
        check(&json!({"sub": user, "iss": "other", "iat": now(), "exp": now() + 60}), Err(Denied::Invalid));
        check(&json!({"sub": "me", "iss": ISSUER, "iat": now(), "exp": now() + 60}), Err(Denied::Invalid));
        let with_session =
            |sid: serde_json::Value| json!({"sub": user, "sid": sid, "iss": ISSUER, "iat": now(), "exp": now() + 60});
        check(&with_session(json!(SessionId::new())), Ok(()));
        check(&with_session(json!("none")), Err(Denied::Invalid));
    }

    #[test]
    fn a_token_ends_with_its_session() {
        let identity = of(SECRET, None);
        let (user, minute, sessions) = (UserId::new(), Duration::from_secs(60), [(); 2].map(|()| SessionId::new()));
        let issued = sessions.map(|session| identity.issue(user, session, minute));
        let claims = json!({"sub": user, "iss": ISSUER, "iat": now(), "exp": now() + 60});
        let tokens = [issued.as_slice(), &[sign(&Header::new(Algorithm::HS256), &claims, SECRET)]].concat();
        let check = |ended: &[SessionId], expected: [Result<UserId, Denied>; 3]| {
            identity.ended.put(ended.to_vec());
            let found: Vec<_> = tokens.iter().map(|token| identity.verify(token.as_bytes())).collect();
            assert_eq!(found, expected, "{ended:?}");
        };
        let over = Err(Denied::Ended);
        check(&[], [Ok(user); 3]);
        check(&sessions[..1], [over, Ok(user), Ok(user)]);
        check(&sessions, [over, over, Ok(user)]);
        check(&[SessionId::new()], [Ok(user); 3]);
    }

    #[test]
    fn one_algorithm() {
        let claims = json!({"sub": UserId::new(), "iss": ISSUER, "iat": now(), "exp": now() + 60});
        let identity = of(SECRET, None);
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert_eq!(
                identity.verify(sign(&Header::new(algorithm), &claims, SECRET).as_bytes()),
                Err(Denied::Invalid)
            );
        }
        // {"alg":"none"} and our claims, unsigned.
        let token = sign(&Header::new(Algorithm::HS256), &claims, SECRET);
        let body = token.split('.').nth(1).unwrap();
        assert_eq!(identity.verify(format!("eyJhbGciOiJub25lIn0.{body}.").as_bytes()), Err(Denied::Invalid));
    }

    #[test]
    fn headers() {
        let identity = of(SECRET, None);
        let user = UserId::new();
        let token = identity.issue(user, SessionId::new(), Duration::from_secs(60));
        let check = |values: &[&str], expected| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            });
            assert_eq!(identity.bearer(&headers), expected, "{values:?}");
        };
        let bearer = format!("Bearer {token}");
        check(&[&bearer], Ok(user));
        check(&[&format!("bearer {token}")], Ok(user));
        check(&[], Err(Denied::Missing));
        check(&["Basic dTpw"], Err(Denied::Missing));
        check(&["Bearer x"], Err(Denied::Invalid));
        check(&[&bearer, &bearer], Err(Denied::Invalid));
    }
}
