//! Typed ids. All are UUIDv7 (RFC 9562), so they sort by the time they were made.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
                Self(Uuid::now_v7())
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
    /// A sandbox on a node.
    SandboxId
);
