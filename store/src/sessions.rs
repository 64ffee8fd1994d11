//! Sessions, as their refresh tokens carry them on and end them.

use chrono::{DateTime, Utc};
use common::digest::Digest;
use common::ids::{SessionId, UserId};

/// A refresh token as it is kept: its SHA-256 only. Tokens that were rotated from one another are a family, and a family is
/// a session.
#[derive(Clone, Copy, Debug)]
pub struct RefreshToken {
    /// SHA-256 of the token.
    pub hash: Digest,
    /// The session that it begins: a fresh id.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// What became of an attempt to use a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The old one is spent, the new one is its family's next.
    Rotated {
        /// Whose.
        user: UserId,
        /// The session that goes on.
        session: SessionId,
    },
    /// It was spent before: its whole session has ended now.
    Reused,
    /// Unknown, expired or revoked.
    Unknown,
}
