//! The tokens that a thread has verified lately. A token that was good is good until it expires, so a client's next
//! call costs a look-up and no cryptography, and no lock is shared between threads.

use std::collections::HashMap;

use common::ids::UserId;

/// Most tokens of a thread. Beyond it all are forgotten: the next call of each is verified again.
const MOST: usize = 4096;

/// Tokens and whose they are.
#[derive(Default)]
pub(crate) struct Verified(HashMap<Box<str>, Known>);

struct Known {
    /// Which identity verified it: a process may have several, with secrets of their own.
    identity: u64,
    user: UserId,
    /// Until when it is good, in seconds since 1970.
    until: u64,
}

impl Verified {
    /// Whose token it is, if `identity` verified it and it has not expired at `now`.
    pub(crate) fn user(&self, identity: u64, token: &str, now: u64) -> Option<UserId> {
        let known = self.0.get(token)?;
        (known.identity == identity && now <= known.until).then_some(known.user)
    }

    /// Keeps a token that `identity` has just verified.
    pub(crate) fn keep(&mut self, identity: u64, token: &str, user: UserId, until: u64) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(token.into(), Known { identity, user, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_until_they_expire() {
        let (mut verified, user) = (Verified::default(), UserId::new());
        verified.keep(1, "token", user, 100);
        assert_eq!(verified.user(1, "token", 100), Some(user));
        assert_eq!(verified.user(1, "token", 101), None);
        assert_eq!(verified.user(2, "token", 100), None, "another secret's");
        assert_eq!(verified.user(1, "token2", 100), None);
    }

    #[test]
    fn a_thread_has_so_many() {
        let (mut verified, user) = (Verified::default(), UserId::new());
        for number in 0..=MOST {
            verified.keep(1, &number.to_string(), user, 100);
        }
        assert_eq!((verified.0.len(), verified.user(1, &MOST.to_string(), 1)), (1, Some(user)));
    }
}
