//! The plan of a deploy: what an archive, its manifest and the form's settings together ask for, under the operator's
//! ceilings. Pure.

use std::collections::BTreeMap;

use common::archive::Contents;
use common::error::Code;
use common::function::{Access, Contract, Limits};
use common::labels::Labels;
use common::manifest::{Ceilings, Manifest};
use common::runtime::{Detected, Runtimes};

use super::error::Failure;

/// A version as it will be, before it has an id or a number.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) detected: Detected,
    pub(crate) archive_root: Option<String>,
    pub(crate) access: Access,
    pub(crate) contract: Contract,
    pub(crate) limits: Limits,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) egress: bool,
    pub(crate) stale_while_cold_ms: u32,
    pub(crate) node_selector: Labels,
    /// What the user should know: a sentence for each wish that a ceiling cut.
    pub(crate) messages: Vec<String>,
}

impl Plan {
    /// The plan for a sound archive. `settings` win over the archive's manifest.
    pub(crate) fn new(
        contents: &Contents,
        settings: Manifest,
        runtimes: &Runtimes,
        ceilings: &Ceilings,
    ) -> Result<Self, Failure> {
        let refused = |sentence: String| Failure::new(Code::BadArchive, sentence);
        let manifest = match &contents.manifest {
            Some(text) => Manifest::from_toml(text).map_err(|error| refused(error.to_string()))?,
            None => Manifest::default(),
        };
        let manifest = manifest.overridden_by(settings);
        let exists = |path: &str, executable: bool| contents.exists(path, executable);
        let detected = runtimes
            .detect(manifest.runtime.as_ref(), manifest.entrypoint.as_deref(), exists)
            .map_err(|error| refused(error.to_string()))?;
        let (limits, mut messages) = manifest.limits(ceilings);
        let (egress, message) = manifest.egress(ceilings);
        messages.extend(message);
        let stale_while_cold_ms = manifest.stale_while_cold_ms().map_err(|error| refused(error.to_string()))?;
        let (contract, message) = manifest.contract(ceilings).map_err(|error| refused(error.to_string()))?;
        messages.extend(message);
        Ok(Self {
            detected,
            archive_root: contents.root.clone(),
            access: manifest.access.unwrap_or(Access::Private),
            contract,
            limits,
            env: manifest.env,
            egress,
            stale_while_cold_ms,
            node_selector: manifest.node_selector,
            messages,
        })
    }
}
