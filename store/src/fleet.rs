//! What is kept of the fleet: the authority, join tokens, nodes.

use chrono::{DateTime, NaiveDateTime, Utc};
use common::ids::NodeId;
use common::labels::Labels;
use uuid::Uuid;

use crate::Error;

/// The authority that the fleet's certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// Its private key, encrypted.
    pub sealed_key: Vec<u8>,
}

/// A node, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which.
    pub id: NodeId,
    /// The machine's name, for people.
    pub name: String,
    /// What its agent said of it last.
    pub labels: Labels,
    /// What the operator says of it, which wins.
    pub given_labels: Labels,
    /// What the operator lets it do.
    pub duty: Duty,
    /// The certificate that it got last; `None` on the gateway's own machine.
    pub certificate: Option<CertificateFacts>,
    /// When it was linked last.
    pub last_seen_at: Option<DateTime<Utc>>,
}

impl Node {
    /// Its labels, whoever says so.
    #[must_use]
    pub fn all_labels(&self) -> Labels {
        self.labels.clone().overridden_by(&self.given_labels)
    }
}

/// What is kept of a node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Its serial number, in hex.
    pub serial: String,
    /// Until when it is valid.
    pub expires_at: DateTime<Utc>,
}

/// What the operator lets a node do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duty {
    /// Everything.
    #[default]
    Active,
    /// Only what is warm there, where no other node can.
    Cordoned,
    /// Nothing more.
    Draining,
    /// It is none of the fleet's any more; the row stays until its certificate has ended.
    Removed,
}

impl Duty {
    /// The word in the database and in answers.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Removed => "removed",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        [Self::Active, Self::Cordoned, Self::Draining, Self::Removed].into_iter().find(|duty| duty.word() == word)
    }
}

/// A machine that joins.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// A fresh id.
    pub id: NodeId,
    /// The machine's name.
    pub name: String,
    /// The certificate that it will get.
    pub certificate: CertificateFacts,
}

/// What became of an attempt to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// The token is spent, the node is kept.
    Joined,
    /// A machine joined by this token before.
    Used,
    /// It is too old.
    Expired,
    /// There is no such token.
    Unknown,
}

/// A row of `nodes`.
#[derive(sqlx::FromRow)]
pub(crate) struct NodeRow {
    id: Uuid,
    name: String,
    labels: String,
    given_labels: String,
    duty: String,
    certificate_serial: Option<String>,
    certificate_expires_at: Option<NaiveDateTime>,
    last_seen_at: Option<NaiveDateTime>,
}

/// Every [`NodeRow`].
pub(crate) const NODES: &str =
    "SELECT id, name, labels, given_labels, duty, certificate_serial, certificate_expires_at, last_seen_at FROM nodes
     ORDER BY id";

/// Replaces the labels `$2` of the node `$1` by `$3`.
pub(crate) const LABEL: &str =
    "UPDATE nodes SET given_labels = $3 WHERE id = $1 AND given_labels = $2 AND duty <> 'removed'";

impl TryFrom<NodeRow> for Node {
    type Error = Error;

    fn try_from(row: NodeRow) -> Result<Self, Error> {
        let ends = row.certificate_expires_at.as_ref().map(NaiveDateTime::and_utc);
        let certificate = row.certificate_serial.zip(ends);
        Ok(Self {
            id: row.id.into(),
            name: row.name,
            labels: row.labels.parse().map_err(|_| Error::Damaged("label"))?,
            given_labels: row.given_labels.parse().map_err(|_| Error::Damaged("label"))?,
            duty: Duty::of_word(&row.duty).ok_or(Error::Damaged("duty"))?,
            certificate: certificate.map(|(serial, expires_at)| CertificateFacts { serial, expires_at }),
            last_seen_at: row.last_seen_at.as_ref().map(NaiveDateTime::and_utc),
        })
    }
}
