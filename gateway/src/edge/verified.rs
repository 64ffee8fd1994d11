//! The tokens that a thread has verified lately. A token that was good is good until it expires, so a client's next
//! call costs a look-up and no cryptography, and no lock is shared between threads.

use std::collections::HashMap;

use common::ids::UserId;

/// Most tokens of a thread. Beyond it all are forgotten: the next call of each is verified again.
const MOST: usize = 4096;

/// Bytes at a token's end, in its signature: random to everybody, so they tell tokens apart, and are quick to hash.
const TAIL: usize = 16;

/// Tokens and whose they are, by their tails.
#[derive(Default)]
pub(crate) struct Verified(HashMap<[u8; TAIL], Known>);

struct Known {
    token: Box<[u8]>,
    /// Which identity verified it: a process may have several, with secrets of their own.
    identity: u64,
    user: UserId,
    /// Until when it is good, in seconds since 1970.
    until: u64,
}

impl Verified {
    /// Whose token it is, if `identity` verified it and it has not expired at `now`.
    pub(crate) fn user(&self, identity: u64, token: &[u8], now: u64) -> Option<UserId> {
        let known = self.0.get(token.last_chunk()?)?;
        (known.identity == identity && now <= known.until && *known.token == *token).then_some(known.user)
    }

    /// Keeps a token that `identity` has just verified.
    pub(crate) fn keep(&mut self, identity: u64, token: &[u8], user: UserId, until: u64) {
        let Some(tail) = token.last_chunk() else { return };
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(*tail, Known { token: token.into(), identity, user, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: usize) -> Vec<u8> {
        format!("header.claims.signature-of-{number:016}").into_bytes()
    }

    #[test]
    fn known_until_they_expire() {
        let (mut verified, user, kept) = (Verified::default(), UserId::new(), token(1));
        verified.keep(1, &kept, user, 100);
        assert_eq!(verified.user(1, &kept, 100), Some(user));
        assert_eq!(verified.user(1, &kept, 101), None);
        assert_eq!(verified.user(2, &kept, 100), None, "another secret's");
        assert_eq!(verified.user(1, &token(2), 100), None);
        assert_eq!(verified.user(1, &[b"x", kept.as_slice()].concat(), 100), None, "the same tail");
        assert_eq!(verified.user(1, b"short", 100), None);
    }

    #[test]
    fn a_thread_has_so_many() {
        let (mut verified, user) = (Verified::default(), UserId::new());
        for number in 0..=MOST {
            verified.keep(1, &token(number), user, 100);
        }
        assert_eq!((verified.0.len(), verified.user(1, &token(MOST), 1)), (1, Some(user)));
    }
}
