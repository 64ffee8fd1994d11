//! The targets, each in a file that is named after what it measures. A new one is a file and a line in [`ALL`].

use anyhow::Result;

use crate::report::Row;
use crate::stage::Stage;

mod added_latency;
mod dart_program;
mod edge_per_core;
mod file_contract;
mod file_contract_rate;
mod first_call;
mod first_call_without_pool;
mod first_calls_at_once;
mod frozen;
mod interpreters;
mod logins;
mod many_functions;
mod more_nodes;
mod policies;
mod resident_memory;
mod tail;
mod whole_chain;

/// A target and how it is measured.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) measure: fn(&Stage) -> Result<Vec<Row>>,
}

const fn target(name: &'static str, what: &'static str, measure: fn(&Stage) -> Result<Vec<Row>>) -> Target {
    Target { name, what, measure }
}

/// All of them, in the order in which they run.
pub(crate) const ALL: &[Target] = &[
    target("P1", "the edge's requests per core, against nginx", edge_per_core::measure),
    target("P2", "the edge's requests per core with all policies, against none", policies::measure),
    target("P3", "a server's call through the whole chain, against two nginx hops", whole_chain::measure),
    target("P4", "the latency that the edge adds, against nginx", added_latency::measure),
    target("F1", "a call by the file contract, against the bare loop", file_contract::measure),
    target("F2", "file-contract calls a second on two cores, against the bare loop", file_contract_rate::measure),
    target("F3", "Python and Node.js by the file contract, against the bare interpreter", interpreters::measure),
    target("F4", "a Dart program by the file contract, against running it bare", dart_program::measure),
    target("C1", "the first call, against docker run", first_call::measure),
    target("C2", "the first call with an empty pool, against the Engine's raw API", first_call_without_pool::measure),
    target("C3", "many first calls at once, against docker run", first_calls_at_once::measure),
    target("C4", "freezing a sandbox, against the Engine's pause; a call that finds one frozen", frozen::measure),
    target("M1", "resident memory", resident_memory::measure),
    target("T1", "p99 against p50 at 70 % of the peak", tail::measure),
    target("A1", "invocations while others log in", logins::measure),
    target("S1", "many deployed functions, against few", many_functions::measure),
    target("FLEET", "calls a second with two and three nodes, against one", more_nodes::measure),
];
