//! Typed ids. All are UUIDv7 (RFC 9562), so they sort by the time they were made; those of one thread strictly.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Largest value of the 12 bits that follow the time.
const MAX_COUNT: u16 = 0xfff;

thread_local! {
    /// The millisecond and the count of this thread's last id.
    static LAST: Cell<(u64, u16)> = const { Cell::new((0, 0)) };
}

/// A fresh UUIDv7 with a counter (RFC 9562, section 6.2, method 1). `Uuid::now_v7` would share its counter between all
/// threads under a lock, and ask the kernel for random bits each time: every call gets an id.
fn fresh() -> Uuid {
    let mut random = [0; 10];
    rand::rng().fill_bytes(&mut random);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let (millis, count) = next(LAST.get(), now, u16::from_be_bytes([random[0], random[1]]));
    LAST.set((millis, count));
    [random[0], random[1]] = count.to_be_bytes();
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// The millisecond and the count of the id after `last`. A new millisecond begins in the lower half, so that there is
/// room to count; one that overflows borrows from the next.
fn next(last: (u64, u16), now: u64, random: u16) -> (u64, u16) {
    match last {
        (millis, _) if now > millis => (now, random & (MAX_COUNT >> 1)),
        (millis, MAX_COUNT) => (millis + 1, 0),
        (millis, count) => (millis, count + 1),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh id, made of the current time and random bits.
            #[must_use]
            #[allow(clippy::new_without_default, reason = "two defaults that differ would surprise")]
            pub fn new() -> Self {
                Self(fresh())
            }

            /// The bare UUID, for storage.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }

            /// When it was made, by the clock of who made it; `None` of an id that was not made here.
            #[must_use]
            pub fn made_at(self) -> Option<DateTime<Utc>> {
                let (seconds, nanoseconds) = self.0.get_timestamp()?.to_unix();
                DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanoseconds)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

id!(
    /// A person, or a program that acts for one.
    UserId
);
id!(
    /// A login and what came of it: the family of its refresh tokens, and the access tokens that came with them.
    SessionId
);
id!(
    /// What a user owns and names.
    FunctionId
);
id!(
    /// One immutable version of a function.
    DeploymentId
);
id!(
    /// One call; it is the request id that the client sees, too.
    InvocationId
);
id!(
    /// A machine with a node agent. Kept in the agent's data directory, so it survives restarts.
    NodeId
);
id!(
    /// A gateway. Kept in its data directory, so it survives restarts.
    GatewayId
);
id!(
    /// A sandbox on a node.
    SandboxId
);
id!(
    /// A node's claim to build from an archive; a fresh one for each.
    HolderId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sorts_after_the_one_before() {
        let ids: Vec<_> = (0..10_000).map(|_| InvocationId::new()).collect();
        assert!(ids.is_sorted_by(|one, next| one < next));
        let id = ids[0].uuid();
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        let age = Utc::now() - ids[0].made_at().unwrap();
        assert!(age.num_seconds().abs() < 60, "{age}");
    }

    #[test]
    fn counts() {
        assert_eq!(next((5, 9), 6, 0xffff), (6, 0x7ff));
        assert_eq!(next((5, 9), 5, 3), (5, 10));
        // A clock that was set back.
        assert_eq!(next((5, 9), 4, 3), (5, 10));
        assert_eq!(next((5, MAX_COUNT), 5, 3), (6, 0));
    }
}
