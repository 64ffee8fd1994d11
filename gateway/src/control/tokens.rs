//! Tokens: the pair that a login gives, and what of the refresh token is kept (its SHA-256, nothing else).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use common::digest::Digest;
use common::ids::{SessionId, UserId};
use serde::Serialize;
use store::RefreshToken;

use super::State;

/// The answer of a login and of a refresh.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenPair {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    /// How long the access token is valid, in seconds.
    expires_in: u32,
}

/// A refresh token that was just made; its text goes to the user and nowhere else.
pub(crate) struct FreshToken {
    text: String,
    /// SHA-256 of the text.
    pub(crate) hash: Digest,
    /// Until when it is valid.
    pub(crate) expires_at: chrono::DateTime<Utc>,
}

impl FreshToken {
    /// 32 random bytes in base64url.
    pub(crate) fn new(lifetime: chrono::Duration) -> Self {
        let text = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        Self { hash: hash(&text), text, expires_at: Utc::now() + lifetime }
    }

    /// The row that is kept of it if it begins a session.
    pub(crate) fn row(&self, user: UserId, session: SessionId) -> RefreshToken {
        RefreshToken { hash: self.hash, session, user, expires_at: self.expires_at }
    }

    /// The pair for `user`, in this session of his.
    pub(crate) fn pair(self, state: &State, user: UserId, session: SessionId) -> TokenPair {
        let lifetime = state.args.access_token_lifetime();
        TokenPair {
            access_token: state.identity.issue(user, session, lifetime),
            refresh_token: self.text,
            token_type: "Bearer",
            expires_in: state.args.access_token_seconds,
        }
    }
}

/// Under what a refresh token is kept.
pub(crate) fn hash(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}
