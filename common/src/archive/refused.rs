//! Why an archive is not taken.

use std::fmt;
use std::io;

/// Longest name of an entry that a refusal repeats, in characters.
const SHOWN_CHARS: usize = 120;

/// An archive that is not taken: the entry at fault, where there is one, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The entry's name: escaped, and cut where it is long.
    pub entry: Option<String>,
    /// What is wrong and what would be right, without a capital and a full stop.
    pub reason: String,
}

impl Refused {
    pub(super) fn whole(reason: impl Into<String>) -> Self {
        Self { entry: None, reason: reason.into() }
    }

    pub(super) fn entry(name: impl AsRef<[u8]>, reason: impl Into<String>) -> Self {
        Self { entry: Some(shown(name.as_ref())), reason: reason.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(entry) => write!(f, "the archive was refused because of `{entry}`: {}", self.reason),
            None => write!(f, "the archive was refused: {}", self.reason),
        }
    }
}

impl std::error::Error for Refused {}

/// Why a walk over an archive ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The archive is at fault.
    Refused(Refused),
    /// The archive's bytes could not be read.
    Read(io::Error),
    /// What it holds could not be written.
    Write(String, io::Error),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// `name` for people's eyes: no control characters, not longer than a line or two.
fn shown(name: &[u8]) -> String {
    let text: String = match std::str::from_utf8(name) {
        Ok(text) => text.chars().take(SHOWN_CHARS + 1).flat_map(char::escape_debug).collect(),
        Err(_) => {
            name.iter().take(SHOWN_CHARS + 1).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
        }
    };
    if text.chars().count() <= SHOWN_CHARS {
        return text;
    }
    text.chars().take(SHOWN_CHARS).chain(['…']).collect()
}
