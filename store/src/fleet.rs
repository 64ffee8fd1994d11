//! What is kept of the fleet: its authorities, join tokens, nodes.

use chrono::{DateTime, NaiveDateTime, Utc};
use common::digest::Digest;
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

/// The authorities that the fleet trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// The one that certifies.
    pub current: Authority,
    /// The one before it, until no node needs it.
    pub former: Option<Authority>,
}

/// Certificate and sealed key of the current one, and of the one before.
pub(crate) type AuthorityRow = (Vec<u8>, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// The one [`AuthorityRow`].
pub(crate) const AUTHORITIES: &str =
    "SELECT certificate, sealed_key, former_certificate, former_sealed_key FROM fleet_authority";

/// Puts the authority `$2` with its key `$3` in the place of `$1`, which becomes the one before.
pub(crate) const ROTATE: &str = "UPDATE fleet_authority
     SET former_certificate = certificate, former_sealed_key = sealed_key, certificate = $2, sealed_key = $3
     WHERE certificate = $1 AND former_certificate IS NULL";

/// From the first exchange on it is known of each node which authority its certificate is of: `$1`, of all that are there.
pub(crate) const NOTE_FIRST: &str = "UPDATE nodes SET certificate_authority = $1
     WHERE certificate_serial IS NOT NULL AND certificate_authority IS NULL";

/// The node `$1` has shown a certificate of the authority `$2`.
pub(crate) const MOVE: &str = "UPDATE nodes SET certificate_authority = $2 WHERE id = $1";

/// Puts the sealed key `$2` in the place of `$1`.
pub(crate) const RESEAL: &str = "UPDATE fleet_authority SET
       sealed_key = CASE WHEN sealed_key = $1 THEN $2 ELSE sealed_key END,
       former_sealed_key = CASE WHEN former_sealed_key = $1 THEN $2 ELSE former_sealed_key END
     WHERE sealed_key = $1 OR former_sealed_key = $1";

impl From<AuthorityRow> for Authorities {
    fn from((certificate, sealed_key, former_certificate, former_sealed_key): AuthorityRow) -> Self {
        let former = former_certificate.zip(former_sealed_key);
        let former = former.map(|(certificate, sealed_key)| Authority { certificate, sealed_key });
        Self { current: Authority { certificate, sealed_key }, former }
    }
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
    /// The digest of the authority by whose certificate it joined, or was linked last by a newer one; `None` where that was
    /// not noted, before the fleet had a second one.
    pub authority: Option<Digest>,
    /// When it was linked last.
    pub last_seen_at: Option<DateTime<Utc>>,
}

impl Node {
    /// Its labels, whoever says so.
    #[must_use]
    pub fn all_labels(&self) -> Labels {
        self.labels.clone().overridden_by(&self.given_labels)
    }

    /// Whether it is one by a certificate that is valid.
    #[must_use]
    pub fn is_certified(&self, now: DateTime<Utc>) -> bool {
        self.duty != Duty::Removed && self.certificate.as_ref().is_some_and(|facts| facts.expires_at > now)
    }

    /// Whether it has shown none of a newer authority than this one, the one before. Where nothing is noted, it is of that.
    #[must_use]
    pub fn depends_on(&self, former: Digest, now: DateTime<Utc>) -> bool {
        self.is_certified(now) && self.authority.is_none_or(|authority| authority == former)
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
    /// The digest of the authority that this is of.
    pub authority: Digest,
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
    certificate_authority: Option<Vec<u8>>,
    last_seen_at: Option<NaiveDateTime>,
}

/// Every [`NodeRow`].
pub(crate) const NODES: &str = "SELECT id, name, labels, given_labels, duty, certificate_serial,
       certificate_expires_at, certificate_authority, last_seen_at
     FROM nodes ORDER BY id";

/// Replaces the labels `$2` of the node `$1` by `$3`.
pub(crate) const LABEL: &str =
    "UPDATE nodes SET given_labels = $3 WHERE id = $1 AND given_labels = $2 AND duty <> 'removed'";

impl TryFrom<NodeRow> for Node {
    type Error = Error;

    fn try_from(row: NodeRow) -> Result<Self, Error> {
        let ends = row.certificate_expires_at.as_ref().map(NaiveDateTime::and_utc);
        let authority = row.certificate_authority.map(<[u8; 32]>::try_from).transpose();
        let authority = authority.map_err(|_| Error::Damaged("authority's digest"))?.map(Digest::from);
        let certificate = row.certificate_serial.zip(ends);
        Ok(Self {
            id: row.id.into(),
            name: row.name,
            labels: row.labels.parse().map_err(|_| Error::Damaged("label"))?,
            given_labels: row.given_labels.parse().map_err(|_| Error::Damaged("label"))?,
            duty: Duty::of_word(&row.duty).ok_or(Error::Damaged("duty"))?,
            certificate: certificate.map(|(serial, expires_at)| CertificateFacts { serial, expires_at }),
            authority,
            last_seen_at: row.last_seen_at.as_ref().map(NaiveDateTime::and_utc),
        })
    }
}
