//! `dartcloud.toml` and the `settings` of a deploy: what a user asks for, and what the operator lets him have.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::function::{Access, Contract, Limits};
use crate::labels::Labels;
use crate::names::RuntimeName;

/// The manifest's file name, at the archive's root.
pub const FILE: &str = "dartcloud.toml";

/// Largest manifest, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a user asks for. Every field is optional; unknown ones are refused.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Found by the archive's files when absent.
    pub runtime: Option<RuntimeName>,
    /// The file that starts the function; the runtime's first one that exists when absent.
    pub entrypoint: Option<String>,
    /// How the function is called.
    pub contract: Option<ContractWord>,
    /// Who may invoke it; `private` when absent.
    pub access: Option<Access>,
    /// Milliseconds of one call in all; of a stream, too.
    pub timeout_ms: Option<u32>,
    /// Milliseconds of silence in one call, under the http contract.
    pub idle_timeout_ms: Option<u32>,
    /// MiB.
    pub memory_mb: Option<u32>,
    /// Invocations at once, over all nodes.
    pub concurrency: Option<u32>,
    /// Sandboxes that are kept warm whether or not anybody calls, over all nodes; 0 when absent.
    pub min_warm: Option<u32>,
    /// Whether it may open connections; `false` when absent.
    pub egress: Option<bool>,
    /// How old an answer to a GET may be that is sent while a sandbox is started, in milliseconds; 0 or absent: none is.
    pub stale_while_cold_ms: Option<u32>,
    /// The labels that a node must have for it; any node will do when absent.
    #[serde(default)]
    pub node_selector: Labels,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// How a function asks to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContractWord {
    /// A process per call, `/request.json` in and `/result.json` out.
    File,
    /// A server that listens on `$PORT`.
    Http,
}

/// The sentence says which field and what it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidManifest(String);

/// What functions get that ask for nothing, and what they may ask for at most. See `design.md`, *Settings*.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Ceilings {
    /// Time limit of a function that names none, in seconds.
    #[arg(long, env = "FUNCTION_TIMEOUT_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub function_timeout_seconds: u32,
    /// Memory of a function that names none, in MiB.
    #[arg(long, env = "FUNCTION_MAX_MEMORY_MB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..))]
    pub function_max_memory_mb: u32,
    /// Invocations at once of a function that names no number.
    #[arg(long, env = "FUNCTION_MAX_CONCURRENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub function_max_concurrent: u32,
    /// Longest time limit that a function may ask for, in seconds.
    #[arg(long, env = "FUNCTION_CEILING_TIMEOUT_SECONDS", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub function_ceiling_timeout_seconds: u32,
    /// Most memory that a function may ask for, in MiB.
    #[arg(long, env = "FUNCTION_CEILING_MEMORY_MB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    pub function_ceiling_memory_mb: u32,
    /// Most invocations at once that a function may ask for.
    #[arg(long, env = "FUNCTION_CEILING_CONCURRENT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub function_ceiling_concurrent: u32,
    /// Most sandboxes that a function may ask to be kept warm.
    #[arg(long, env = "FUNCTION_CEILING_MIN_WARM", default_value_t = 10)]
    pub function_ceiling_min_warm: u32,
    /// Whether a function may ask for a network.
    #[arg(long, env = "FUNCTION_CEILING_EGRESS", default_value_t = true, action = clap::ArgAction::Set)]
    pub function_ceiling_egress: bool,
}

impl Manifest {
    /// Reads a `dartcloud.toml`.
    ///
    /// # Errors
    /// It is not TOML, or has a field that is unknown or of the wrong kind.
    pub fn from_toml(text: &str) -> Result<Self, InvalidManifest> {
        let manifest: Self = toml::from_str(text)
            .map_err(|error| InvalidManifest(format!("{FILE}: {}", error.to_string().trim_end())))?;
        manifest.checked(FILE)
    }

    /// Reads the `settings` of a deploy.
    ///
    /// # Errors
    /// It is not JSON, or has a field that is unknown or of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, InvalidManifest> {
        let manifest: Self =
            serde_json::from_str(text).map_err(|error| InvalidManifest(format!("settings: {error}")))?;
        manifest.checked("settings")
    }

    /// `self` with everything that `over` names taken from `over`; environments and selectors are joined.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        let mut env = self.env;
        env.extend(over.env);
        Self {
            runtime: over.runtime.or(self.runtime),
            entrypoint: over.entrypoint.or(self.entrypoint),
            contract: over.contract.or(self.contract),
            access: over.access.or(self.access),
            timeout_ms: over.timeout_ms.or(self.timeout_ms),
            idle_timeout_ms: over.idle_timeout_ms.or(self.idle_timeout_ms),
            memory_mb: over.memory_mb.or(self.memory_mb),
            concurrency: over.concurrency.or(self.concurrency),
            min_warm: over.min_warm.or(self.min_warm),
            egress: over.egress.or(self.egress),
            stale_while_cold_ms: over.stale_while_cold_ms.or(self.stale_while_cold_ms),
            node_selector: self.node_selector.overridden_by(&over.node_selector),
            env,
        }
    }

    /// The limits that the function gets, and a message for each wish that the operator's ceiling cut.
    #[must_use]
    pub fn limits(&self, ceilings: &Ceilings) -> (Limits, Vec<String>) {
        let mut messages = Vec::new();
        let mut cap = |name: &str, wish: Option<u32>, default: u32, ceiling: u32| {
            let value = wish.unwrap_or(default);
            if value > ceiling {
                messages.push(format!("{name} = {value} is over this platform's ceiling: {ceiling} is used"));
            }
            value.min(ceiling)
        };
        let mut limits = Limits {
            timeout_ms: cap(
                "timeout_ms",
                self.timeout_ms,
                ceilings.function_timeout_seconds.saturating_mul(1000),
                ceilings.function_ceiling_timeout_seconds.saturating_mul(1000),
            ),
            memory_mb: cap(
                "memory_mb",
                self.memory_mb,
                ceilings.function_max_memory_mb,
                ceilings.function_ceiling_memory_mb,
            ),
            concurrency: cap(
                "concurrency",
                self.concurrency,
                ceilings.function_max_concurrent,
                ceilings.function_ceiling_concurrent,
            ),
            min_warm: cap("min_warm", self.min_warm, 0, ceilings.function_ceiling_min_warm),
        };
        let Limits { min_warm, concurrency, .. } = limits;
        if min_warm > concurrency {
            messages.push(format!("min_warm = {min_warm} is over concurrency = {concurrency}, which is used"));
            limits.min_warm = concurrency;
        }
        (limits, messages)
    }

    /// Whether the function gets a network, and a message if it wishes one that nobody gets here.
    #[must_use]
    pub fn egress(&self, ceilings: &Ceilings) -> (bool, Option<String>) {
        match (self.egress.unwrap_or(false), ceilings.function_ceiling_egress) {
            (true, false) => (false, Some("egress = true is not given on this platform: false is used".to_owned())),
            (wish, _) => (wish, None),
        }
    }

    /// How old an answer may be that is sent while a sandbox is started, in milliseconds; 0: none is.
    ///
    /// # Errors
    /// It asks for that, and is not public.
    pub fn stale_while_cold_ms(&self) -> Result<u32, InvalidManifest> {
        match (self.stale_while_cold_ms.unwrap_or(0), self.access) {
            (0, _) => Ok(0),
            (ms, Some(Access::Public)) => Ok(ms),
            // What one caller was told may not be for another.
            (_, _) => Err(InvalidManifest("stale_while_cold_ms is for `access = \"public\"` alone".into())),
        }
    }

    /// How the function is called, and a message where the operator's ceiling cut its wish.
    ///
    /// # Errors
    /// It asks for something that its contract does not have.
    pub fn contract(&self, ceilings: &Ceilings) -> Result<(Contract, Option<String>), InvalidManifest> {
        match (self.contract, self.idle_timeout_ms) {
            (Some(ContractWord::Http), wish) => {
                let ceiling = ceilings.function_ceiling_timeout_seconds.saturating_mul(1000);
                let cut = wish.filter(|wish| *wish > ceiling);
                let message = cut
                    .map(|wish| format!("idle_timeout_ms = {wish} is over this platform's ceiling: {ceiling} is used"));
                Ok((Contract::Http { idle_timeout_ms: wish.unwrap_or(IDLE_TIMEOUT_MS).min(ceiling) }, message))
            }
            (_, Some(_)) => {
                Err(InvalidManifest("idle_timeout_ms is of the http contract: add `contract = \"http\"`".into()))
            }
            (_, None) => Ok((Contract::File, None)),
        }
    }

    fn checked(self, source: &str) -> Result<Self, InvalidManifest> {
        let refuse = |sentence: String| Err(InvalidManifest(format!("{source}: {sentence}")));
        if [self.timeout_ms, self.idle_timeout_ms, self.concurrency].contains(&Some(0)) {
            return refuse("timeout_ms, idle_timeout_ms and concurrency are at least 1".into());
        }
        if self.stale_while_cold_ms.is_some_and(|ms| ms > MAX_STALE_MS) {
            return refuse(format!("stale_while_cold_ms is at most {MAX_STALE_MS}, which is a day"));
        }
        if self.memory_mb.is_some_and(|memory| memory < MIN_MEMORY_MB) {
            return refuse(format!("memory_mb is at least {MIN_MEMORY_MB}"));
        }
        for (name, value) in &self.env {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty()
                || name.len() > 128
                || !name.chars().all(plain)
                || name.starts_with(|c: char| c.is_ascii_digit())
            {
                return refuse(format!("env name `{name}` is not valid: use letters, digits and `_`"));
            }
            if value.len() > MAX_ENV_VALUE_BYTES || value.contains('\0') {
                return refuse(format!("env value of `{name}` is over {MAX_ENV_VALUE_BYTES} bytes or holds a NUL"));
            }
        }
        if self.env.len() > MAX_ENV_NAMES {
            return refuse(format!("env has more than {MAX_ENV_NAMES} names"));
        }
        Ok(self)
    }
}

/// The longest silence in a call of an http function that names none, in milliseconds.
const IDLE_TIMEOUT_MS: u32 = 60_000;
/// Least memory of a function, in MiB: what the runner and a shell need.
pub const MIN_MEMORY_MB: u32 = 16;
/// The oldest answer that a function may have sent, in milliseconds.
const MAX_STALE_MS: u32 = 24 * 60 * 60 * 1000;
const MAX_ENV_NAMES: usize = 100;
const MAX_ENV_VALUE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str, expected: Result<(), &str>) {
        match (Manifest::from_toml(toml), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{toml:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn fields() {
        check("", Ok(()));
        check("runtime = 'python'\nentrypoint = 'a.py'\naccess = 'public'\n[env]\nA = 'b'", Ok(()));
        check("[node_selector]\ngpu = 'true'\nzone = 'a'", Ok(()));
        check("[node_selector]\ngpu = true", Err("expected a string"));
        check("[node_selector]\n'g p u' = 'true'", Err("labels are written"));
        check("color = 'red'", Err("unknown field `color`"));
        check("contract = 'http'\nidle_timeout_ms = 1000", Ok(()));
        check("timeout_ms = 0", Err("at least 1"));
        check("idle_timeout_ms = 0", Err("at least 1"));
        check("memory_mb = 1", Err("at least 16"));
        check("timeout_ms = -1", Err("invalid value"));
        check("stale_while_cold_ms = 86400000", Ok(()));
        check("stale_while_cold_ms = 86400001", Err("at most 86400000"));
        check("runtime = 'No Such'", Err("runtime"));
        check("contract = 'carrier-pigeon'", Err("unknown variant"));
        check("[env]\n'1A' = 'x'", Err("not valid"));
        check("= 1", Err("dartcloud.toml"));
    }

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        ceilings: Ceilings,
    }

    #[test]
    fn the_ceiling_of_egress_wins() {
        let check = |toml: &str, words: &[&str], expected: (bool, bool)| {
            let line = <Flags as clap::Parser>::parse_from([&["test"], words].concat());
            let (egress, message) = Manifest::from_toml(toml).unwrap().egress(&line.ceilings);
            assert_eq!((egress, message.is_some()), expected, "{toml} {words:?}");
        };
        let closed = ["--function-ceiling-egress", "false"];
        check("", &[], (false, false));
        check("egress = true", &[], (true, false));
        check("egress = true", &closed, (false, true));
        check("egress = false", &closed, (false, false));
    }

    #[test]
    fn only_what_is_public_may_be_stale() {
        let check = |toml: &str, expected: Option<u32>| {
            assert_eq!(Manifest::from_toml(toml).unwrap().stale_while_cold_ms().ok(), expected, "{toml}");
        };
        check("", Some(0));
        check("access = 'private'\nstale_while_cold_ms = 0", Some(0));
        check("access = 'public'\nstale_while_cold_ms = 60000", Some(60_000));
        check("access = 'private'\nstale_while_cold_ms = 60000", None);
        check("stale_while_cold_ms = 1", None);
    }

    #[test]
    fn how_many_are_kept_warm() {
        let check = |toml: &str, words: &[&str], expected: (u32, usize)| {
            let line = <Flags as clap::Parser>::parse_from([&["test"], words].concat());
            let (limits, messages) = Manifest::from_toml(toml).unwrap().limits(&line.ceilings);
            assert_eq!((limits.min_warm, messages.len()), expected, "{toml} {messages:?}");
        };
        check("", &[], (0, 0));
        check("min_warm = 0", &[], (0, 0));
        check("min_warm = 10", &[], (10, 0));
        check("min_warm = 11", &[], (10, 1));
        check("min_warm = 3\nconcurrency = 2", &[], (2, 1));
        check("min_warm = 1", &["--function-ceiling-min-warm", "0"], (0, 1));
    }

    #[test]
    fn contracts() {
        let ceilings = <Flags as clap::Parser>::parse_from(["test"]).ceilings;
        let check = |toml: &str, expected: Result<(Contract, bool), &str>| match (
            Manifest::from_toml(toml).unwrap().contract(&ceilings),
            expected,
        ) {
            (Ok((contract, message)), Ok(expected)) => assert_eq!((contract, message.is_some()), expected, "{toml}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} has no {part}"),
            (got, expected) => panic!("{toml:?}: {got:?}, expected {expected:?}"),
        };
        let http = |idle_timeout_ms| Contract::Http { idle_timeout_ms };
        check("", Ok((Contract::File, false)));
        check("contract = 'file'", Ok((Contract::File, false)));
        check("contract = 'http'", Ok((http(60_000), false)));
        check("contract = 'http'\nidle_timeout_ms = 900000", Ok((http(900_000), false)));
        check("contract = 'http'\nidle_timeout_ms = 900001", Ok((http(900_000), true)));
        check("idle_timeout_ms = 1000", Err("contract = \"http\""));
    }
}
