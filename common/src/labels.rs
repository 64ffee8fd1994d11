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

impl Labels {
    /// None.
    pub const NONE: Self = Self(BTreeMap::new());

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether each label of `selector` is among them, with its value.
    #[must_use]
    pub fn have(&self, selector: &Self) -> bool {
        selector.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }

    /// These with those of `over`, which win.
    #[must_use]
    pub fn overridden_by(mut self, over: &Self) -> Self {
        self.0.extend(over.0.iter().map(|(key, value)| (key.clone(), value.clone())));
        self
    }

    /// These with each key that `changes` names set, or taken away where there is no value.
    ///
    /// # Errors
    /// What comes of it is not valid.
    pub fn changed(mut self, changes: BTreeMap<String, Option<String>>) -> Result<Self, InvalidLabels> {
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.0.insert(key, value)),
                None => drop(self.0.remove(&key)),
            }
        }
        self.0.try_into()
    }
}

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

    #[test]
    fn selectors() {
        let check = |labels: &str, selector: &str, expected| {
            let [labels, selector] = [labels, selector].map(|text| text.parse::<Labels>().unwrap());
            assert_eq!(labels.have(&selector), expected, "{labels}: {selector}");
        };
        check("", "", true);
        check("zone=a", "", true);
        check("zone=a,gpu=true", "gpu=true", true);
        check("zone=a,gpu=false", "gpu=true", false);
        check("zone=a", "gpu=true", false);
        check("zone=a", "zone=a,gpu=true", false);
    }

    #[test]
    fn changes() {
        let check = |changes: &[(&str, Option<&str>)], expected: Option<&str>| {
            let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
            let labels = "zone=a,disk=ssd".parse::<Labels>().unwrap().changed(changes);
            assert_eq!(labels.ok().map(|labels| labels.to_string()).as_deref(), expected);
        };
        check(&[], Some("disk=ssd,zone=a"));
        check(&[("gpu", Some("true")), ("zone", None), ("none", None)], Some("disk=ssd,gpu=true"));
        check(&[("zone", Some("b"))], Some("disk=ssd,zone=b"));
        check(&[("", Some("b"))], None);
        let over = "zone=a,disk=ssd".parse::<Labels>().unwrap().overridden_by(&"zone=b,gpu=true".parse().unwrap());
        assert_eq!(over.to_string(), "disk=ssd,gpu=true,zone=b");
    }
}
