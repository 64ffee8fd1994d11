//! What an operator says of a node, for people and for placement: `zone=a,disk=ssd`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most labels of a node.
const MAX_LABELS: usize = 32;

/// Longest key and longest value, in bytes.
const MAX_WORD: usize = 63;

/// A node's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// The labels are not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "labels are written as `zone=a,disk=ssd`: at most 32, each key once, keys and values of up to 63 letters, digits, \
     `-`, `_`, `.` and `/`"
)]
pub struct InvalidLabels;

impl FromStr for Labels {
    type Err = InvalidLabels;

    fn from_str(text: &str) -> Result<Self, InvalidLabels> {
        let mut labels = BTreeMap::new();
        for label in text.split(',').map(str::trim).filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').ok_or(InvalidLabels)?;
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(InvalidLabels);
            }
        }
        labels.try_into()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabels;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, InvalidLabels> {
        let is_word = |text: &str| {
            text.len() <= MAX_WORD && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_./".contains(&c))
        };
        let are_valid = labels.iter().all(|(key, value)| !key.is_empty() && is_word(key) && is_word(value));
        if labels.len() <= MAX_LABELS && are_valid { Ok(Self(labels)) } else { Err(InvalidLabels) }
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (key, value)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(text.parse::<Labels>().ok().map(|labels| labels.to_string()).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn labels() {
        check("", Some(""));
        check("zone=a, disk=ssd,", Some("disk=ssd,zone=a"));
        check("example.com/gpu=", Some("example.com/gpu="));
        check("zone", None);
        check("=a", None);
        check("zone=a=b", None);
        check("zone=a,zone=b", None);
        check("zone=ü", None);
        check(&format!("zone={}", "a".repeat(64)), None);
        check(&(0..33).map(|number| format!("l{number}=a,")).collect::<String>(), None);
    }
}
