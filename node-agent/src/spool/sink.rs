//! Where batches of records go: straight to the store, or through the link to a gateway that has one.

use std::sync::Arc;

use async_trait::async_trait;
use common::invocation::Record;
use store::RecordSink;

use crate::link::calls::{CallError, Calls};

/// Takes batches of records; the same batch may come twice.
#[async_trait]
pub(crate) trait Ship: Send + Sync {
    /// Hands over a batch, all or nothing.
    async fn ship(&self, records: &[Record]) -> Result<(), ShipError>;
}

/// A batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShipError {
    /// The same batch may be taken later.
    #[error("the store cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something in it will never be taken, as it seems.
    #[error("the store refused a batch of records")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The store itself.
pub(crate) struct StoreSink(pub(crate) Arc<dyn RecordSink>);

#[async_trait]
impl Ship for StoreSink {
    async fn ship(&self, records: &[Record]) -> Result<(), ShipError> {
        self.0.insert_records(records).await.map_err(|error| match error {
            store::Error::Unavailable(_) => ShipError::Unreachable(error.into()),
            _ => ShipError::Refused(error.into()),
        })
    }
}

/// A gateway.
pub(crate) struct LinkSink(pub(crate) Arc<Calls>);

#[async_trait]
impl Ship for LinkSink {
    async fn ship(&self, records: &[Record]) -> Result<(), ShipError> {
        self.0.post_records(records).await.map_err(|error| match error {
            CallError::Refused { status: 400 | 413 | 422 | 500, .. } => ShipError::Refused(error.into()),
            _ => ShipError::Unreachable(error.into()),
        })
    }
}
