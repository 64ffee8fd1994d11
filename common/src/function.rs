//! Functions and their deployments, as gateway and agent speak of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{DeploymentId, FunctionId};
use crate::labels::Labels;
use crate::names::RuntimeName;

/// Who may invoke a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Its owner, with a JWT.
    Private,
    /// Anyone.
    Public,
}

/// How a function is called; what only one way needs stands with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contract {
    /// A process per call, `/request.json` in and `/result.json` out.
    #[default]
    File,
    /// A server that listens on `$PORT` and takes many calls at once.
    Http {
        /// The longest silence of one call, in both directions together, in milliseconds.
        idle_timeout_ms: u32,
    },
}

impl Contract {
    /// The word in manifests, in the API and in the table of deployments.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http { .. } => "http",
        }
    }

    /// The longest silence of one call, where the contract knows one.
    #[must_use]
    pub fn idle_timeout_ms(self) -> Option<u32> {
        match self {
            Self::File => None,
            Self::Http { idle_timeout_ms } => Some(idle_timeout_ms),
        }
    }
}

/// What one invocation may use, and how many may be served at once, after the operator's ceilings were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Wall-clock time of one invocation, in milliseconds.
    pub timeout_ms: u32,
    /// Memory of one sandbox, in MiB; there is no swap.
    pub memory_mb: u32,
    /// Invocations at once, over all nodes.
    pub concurrency: u32,
    /// Sandboxes that are kept warm whether or not anybody calls, over all nodes.
    #[serde(default)]
    pub min_warm: u32,
}

/// What a node has to know to build and run one version of a function. Immutable: a change of anything in it
/// is a new deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentSpec {
    /// The version's id.
    pub deployment: DeploymentId,
    /// The function that it is a version of.
    pub function: FunctionId,
    /// 1, 2, …
    pub version: u32,
    /// The language, by the name of its file.
    pub runtime: RuntimeName,
    /// The file that starts it, relative to the archive's root.
    pub entrypoint: String,
    /// The archive, by its SHA-256.
    pub archive: Digest,
    /// The single top folder of the archive that is stripped, if it has one.
    pub archive_root: Option<String>,
    /// How it is called.
    #[serde(default)]
    pub contract: Contract,
    /// What one invocation may use.
    pub limits: Limits,
    /// The function's own environment.
    pub env: BTreeMap<String, String>,
    /// Whether its sandboxes have a network.
    pub egress: bool,
    /// How old an answer to a GET may be that is sent while a sandbox is started, in milliseconds; 0: none is.
    #[serde(default)]
    pub stale_while_cold_ms: u32,
    /// The labels that a node must have for it.
    #[serde(default)]
    pub node_selector: Labels,
}

/// A function's state, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The first version is being built, or none was ever built.
    Building,
    /// A version serves.
    Active,
    /// No version ever served: the first build failed.
    Failed,
}
