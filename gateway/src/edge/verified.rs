//! The tokens that a thread has verified lately. A token that was good is good until it expires, but for the end of its
//! session, which is looked at each time. So a client's next call costs a look-up and no cryptography, and no lock is
//! shared between threads.

use std::collections::HashMap;

use common::ids::{SessionId, UserId};

/// Most tokens of a thread. Beyond it all are forgotten: the next call of each is verified again.
const MOST: usize = 4096;

/// Bytes at a token's end, in its signature: random to everybody, so they tell tokens apart, and are quick to hash.
const TAIL: usize = 16;

/// What a good token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    /// Whose it is.
    pub(super) user: UserId,
    /// The session that it ends with; none of tokens of older versions.
    pub(super) session: Option<SessionId>,
}

/// Tokens and what they say, by their tails.
#[derive(Default)]
pub(super) struct Verified(HashMap<[u8; TAIL], Known>);

struct Known {
    token: Box<[u8]>,
    /// Which identity verified it: a process may have several, with secrets of their own.
    identity: u64,
    bearer: Bearer,
    /// Until when it is good, in seconds since 1970.
    until: u64,
}

impl Verified {
    /// What a token says, if `identity` verified it and it has not expired at `now`.
    pub(super) fn bearer(&self, identity: u64, token: &[u8], now: u64) -> Option<Bearer> {
        let known = self.0.get(token.last_chunk()?)?;
        (known.identity == identity && now <= known.until && *known.token == *token).then_some(known.bearer)
    }

    /// Keeps a token that `identity` has just verified.
    pub(super) fn keep(&mut self, identity: u64, token: &[u8], bearer: Bearer, until: u64) {
        let Some(tail) = token.last_chunk() else { return };
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(*tail, Known { token: token.into(), identity, bearer, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer() -> Bearer {
        Bearer { user: UserId::new(), session: Some(SessionId::new()) }
    }

    fn token(number: usize) -> Vec<u8> {
        format!("header.claims.signature-of-{number:016}").into_bytes()
    }

    #[test]
    fn known_until_they_expire() {
        let (mut verified, bearer, kept) = (Verified::default(), bearer(), token(1));
        verified.keep(1, &kept, bearer, 100);
        assert_eq!(verified.bearer(1, &kept, 100), Some(bearer));
        assert_eq!(verified.bearer(1, &kept, 101), None);
        assert_eq!(verified.bearer(2, &kept, 100), None, "another secret's");
        assert_eq!(verified.bearer(1, &token(2), 100), None);
        assert_eq!(verified.bearer(1, &[b"x", kept.as_slice()].concat(), 100), None, "the same tail");
        assert_eq!(verified.bearer(1, b"short", 100), None);
    }

    #[test]
    fn a_thread_has_so_many() {
        let (mut verified, bearer) = (Verified::default(), bearer());
        for number in 0..=MOST {
            verified.keep(1, &token(number), bearer, 100);
        }
        assert_eq!((verified.0.len(), verified.bearer(1, &token(MOST), 1)), (1, Some(bearer)));
    }
}
