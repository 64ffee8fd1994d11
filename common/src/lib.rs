//! What the gateway and the node agent both have to know: typed ids and names, the domain types that cross
//! the link, the agent protocol, the archive check, the error table, telemetry.
//!
//! This crate knows no database, no web framework and no container engine.

pub mod archive;
pub mod base64;
pub mod conduit;
pub mod descriptors;
pub mod digest;
pub mod error;
pub mod function;
pub mod ids;
pub mod interrupt;
pub mod invocation;
pub mod join_token;
pub mod labels;
pub mod manifest;
pub mod names;
pub mod node_url;
pub mod ops;
pub mod options;
pub mod phases;
pub mod protocol;
pub mod runtime;
pub mod settings;
pub mod stream;
pub mod telemetry;
