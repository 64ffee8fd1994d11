//! Names that people choose, parsed once at the door.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused; the sentence is for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not valid: use 1 to {max} lower-case letters, digits and hyphens")]
pub struct InvalidName {
    what: &'static str,
    given: String,
    max: usize,
}

fn parse(what: &'static str, max: usize, text: &str) -> Result<String, InvalidName> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=max).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(InvalidName { what, given: text.chars().take(max + 1).collect(), max })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                parse($what, $max, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A function's name, unique among its owner's: `[a-z0-9-]{1,63}`.
    FunctionName, "the function name", 63
);
name!(
    /// A user's name in URLs (`/f/{handle}/…`), given at registration: `[a-z0-9-]{1,63}`.
    Handle, "the handle", 63
);
name!(
    /// A runtime's name, which is also its file's name under `deploy/runtimes`: `[a-z0-9-]{1,32}`.
    RuntimeName, "the runtime", 32
);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, valid: bool) {
        assert_eq!(text.parse::<FunctionName>().is_ok(), valid, "{text:?}");
    }

    #[test]
    fn function_names() {
        check("a", true);
        check("hello-world-2", true);
        check(&"a".repeat(63), true);
        check(&"a".repeat(64), false);
        check("", false);
        check("Hello", false);
        check("a_b", false);
        check("a/b", false);
        check("ü", false);
        check("a\n", false);
    }
}
