//! The token by which a machine joins a fleet: a secret that is good once, and the pin of the gateway's authority, so
//! that the machine knows whom it tells the secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::digest::Digest;

/// What a token begins with, so that people and secret scanners know one when they see it.
const PREFIX: &str = "dcjoin_";

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;

/// A join token; as text it is one word.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; SECRET_BYTES],
    pin: Digest,
}

/// The text is no join token.
#[derive(Debug, thiserror::Error)]
#[error("this is not a whole join token: copy the line of `dartcloud node token` again")]
pub struct InvalidJoinToken;

impl JoinToken {
    /// A token of a secret for the fleet whose authority's certificate has this digest.
    #[must_use]
    pub fn new(secret: [u8; SECRET_BYTES], pin: Digest) -> Self {
        Self { secret, pin }
    }

    /// The secret, as it crosses the link.
    #[must_use]
    pub fn secret(&self) -> String {
        crate::base64::encode(self.secret)
    }

    /// SHA-256 of the authority's certificate.
    #[must_use]
    pub fn pin(&self) -> Digest {
        self.pin
    }

    /// Under what the gateway keeps the token.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(&self.secret)
    }

    /// The same of a secret as it crosses the link; `None` when it is none.
    #[must_use]
    pub fn hash_of(secret: &str) -> Option<Digest> {
        let bytes = crate::base64::decode(secret).ok()?;
        (bytes.len() == SECRET_BYTES).then(|| Digest::of(&bytes))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.secret[..], &self.pin.bytes()[..]].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, InvalidJoinToken> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinToken)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidJoinToken)?;
        let (secret, pin) = bytes.split_at_checked(SECRET_BYTES).ok_or(InvalidJoinToken)?;
        let secret = secret.try_into().map_err(|_| InvalidJoinToken)?;
        let pin: [u8; 32] = pin.try_into().map_err(|_| InvalidJoinToken)?;
        Ok(Self { secret, pin: pin.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let token = JoinToken::new([7; 32], Digest::of(b"an authority"));
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert_eq!(JoinToken::hash_of(&token.secret()), Some(token.hash()));
        assert!(!format!("{token:?}").contains(&token.secret()));
    }

    #[test]
    fn what_is_no_token() {
        let text = JoinToken::new([7; 32], Digest::of(b"an authority")).to_string();
        for wrong in ["", "dcjoin_", &text[1..], &text[..text.len() - 2], &format!("{text}AA"), "dcjoin_!"] {
            assert!(wrong.parse::<JoinToken>().is_err(), "{wrong:?}");
        }
        assert_eq!(JoinToken::hash_of("AAAA"), None);
    }
}
