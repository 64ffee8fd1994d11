//! Why a gateway does not start. Each sentence says the fix.

use std::net::SocketAddr;

pub use crate::edge::shared_limits::SharedLimitsError;
pub use crate::edge::tls::TlsError;
pub use crate::fleet::link::LinkError;
pub use crate::fleet::node_port::NodePortError;
pub use crate::hand_over::TakeOverError;

/// The gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is missing or wrong: the operator's to mend.
    #[error("{0}")]
    Setting(String),
    /// The public port is taken, or not ours to take.
    #[error("cannot listen on {address}: stop what listens there, or set PORT or BIND_ADDR")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The link's socket cannot be had.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The shared limits cannot be had.
    #[error(transparent)]
    SharedLimits(#[from] SharedLimitsError),
    /// The node port cannot be had.
    #[error(transparent)]
    NodePort(#[from] NodePortError),
    /// A runtime file is wrong.
    #[error(transparent)]
    Runtime(#[from] common::runtime::InvalidRuntime),
    /// The database did not answer within a minute, or refuses us.
    #[error("the database cannot be opened: check DATABASE_URL or POSTGRES_*, and that it runs")]
    Store(#[from] store::Error),
    /// The artifact store is not there, or not ours.
    #[error(transparent)]
    Artifacts(#[from] store::artifacts::ArtifactsError),
    /// It was stopped while it waited for the database, or for nodes.
    #[error("told to stop before it had started")]
    Stopped,
    /// The disk.
    #[error("cannot use the data directory {path}: set DATA_DIR to one that this user can write")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data directory is somebody else's.
    #[error(
        "another gateway uses {0}: stop it, take its place by `dartcloud-gateway --take-over`, or give this one another \
         DATA_DIR"
    )]
    Locked(String),
    /// Out of descriptors, most likely.
    #[error("the sockets cannot be kept for a successor")]
    Sockets(#[source] std::io::Error),
    /// The place of the gateway that runs cannot be had.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// No threads, or no memory.
    #[error("the system gave no threads")]
    Threads(#[source] std::io::Error),
    /// The control API's own threads.
    #[error("the control API cannot start")]
    Control(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The first user's account.
    #[error("the operator's account cannot be made: {0}")]
    Founder(String),
    /// Two gateways on one registry.
    #[error("the metrics are registered already")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    /// The exit code of a program that ends with this: 64 where a setting is wrong, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting(_) | Self::Runtime(_) | Self::Tls(_) | Self::SharedLimits(SharedLimitsError::Url(_)) => 64,
            Self::Artifacts(store::artifacts::ArtifactsError::Settings(_)) => 64,
            _ => 1,
        }
    }
}
