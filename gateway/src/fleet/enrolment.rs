//! How a machine becomes a node: a token that is good once, a certificate for the key that the machine made, and a
//! new certificate before that one ends.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use common::base64;
use common::conduit::Conduit;
use common::digest::Digest;
use common::error::Chain;
use common::ids::{NodeId, UserId};
use common::join_token::JoinToken;
use common::node_url::NodeUrl;
use common::protocol::{Credential, JoinAnswer, JoinRequest, Renewal};
use futures_util::{SinkExt, StreamExt as _};
use store::Store;
use store::fleet::{Joining, NewNode};
use tokio::time::timeout;
use tokio_util::codec::{Framed, FramedParts, LengthDelimitedCodec};

use super::authorities::Authorities;
use super::authority::{Authority, AuthorityError, Issued};
use super::config::NodePortArgs;
use super::{Fleet, roster};
use crate::config::Secrets;

/// How long a join token can be handed out, in seconds.
const TOKEN_SECONDS: u32 = 15 * 60;

/// Largest request to join, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// How long a machine may take to say what it wants, and to take the answer.
const FRAME_DEADLINE: Duration = Duration::from_secs(5);

/// How long the database may take to take in a node.
const STORE_DEADLINE: Duration = Duration::from_secs(15);

/// Longest name of a machine, in characters.
const MAX_NAME: usize = 255;

/// Takes nodes in.
pub(crate) struct Enrolment {
    /// The node port has them, too.
    pub(super) authorities: Arc<ArcSwap<Authorities>>,
    /// Held while they are read; what it holds is the database's number of them.
    pub(super) reading: tokio::sync::Mutex<Option<i64>>,
    pub(super) store: Arc<dyn Store>,
    pub(super) secrets: Secrets,
    pub(super) args: NodePortArgs,
}

/// A token that was just made.
pub(crate) struct Invitation {
    pub(crate) token: JoinToken,
    pub(crate) url: NodeUrl,
    pub(crate) expires_at: DateTime<Utc>,
}

/// Why a machine gets no certificate. The sentence goes to the machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the token was used before: each is good for one machine; make another with `dartcloud node token`")]
    Used,
    #[error("the token is too old: it is good for {} minutes; make another with `dartcloud node token`", TOKEN_SECONDS / 60)]
    Expired,
    #[error("no such token was given out here: make one with `dartcloud node token`")]
    Unknown,
    #[error("the request cannot be read: bring this machine and the gateway to the same version")]
    Garbled,
    #[error("the certificate request is not valid")]
    Request(#[source] rcgen::Error),
    #[error("this node was removed from the fleet")]
    Removed,
    #[error("the gateway's database does not answer: try again in a moment")]
    Store(#[source] store::Error),
    #[error("the gateway's database does not answer in time: try again in a moment")]
    Late,
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => Self::Removed,
            error => Self::Store(error),
        }
    }
}

impl Enrolment {
    /// # Errors
    /// The fleet's authorities cannot be had.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        secrets: Secrets,
        args: NodePortArgs,
    ) -> Result<Self, AuthorityError> {
        let authorities = Authorities::open(&*store, &secrets, args.names()).await?;
        let authorities = Arc::new(ArcSwap::from_pointee(authorities));
        Ok(Self { authorities, reading: tokio::sync::Mutex::default(), store, secrets, args })
    }

    /// The authorities that the fleet trusts, at any time.
    pub(crate) fn authorities(&self) -> Arc<ArcSwap<Authorities>> {
        Arc::clone(&self.authorities)
    }

    /// A fresh token, and where to use it; `host` is how the operator reaches us. `None` where there is no node port.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn invite(&self, made_by: UserId, host: &str) -> Result<Option<Invitation>, store::Error> {
        let Some(url) = self.args.url(host) else { return Ok(None) };
        let token = JoinToken::new(rand::random(), self.authorities.load().current.pin());
        let expires_at = self.store.add_join_token(token.hash(), made_by, TOKEN_SECONDS).await?;
        Ok(Some(Invitation { token, url, expires_at }))
    }

    /// Hears what a machine without a certificate wants, and answers.
    pub(super) async fn welcome(&self, fleet: &Fleet, stream: Conduit, rest: BytesMut) {
        let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_REQUEST_BYTES).new_codec();
        let mut parts = FramedParts::new::<Bytes>(stream, codec);
        parts.read_buf = rest;
        let mut frames = Framed::from_parts(parts);
        let Ok(Some(Ok(frame))) = timeout(FRAME_DEADLINE, frames.next()).await else { return };
        let answer = match self.join(fleet, &frame).await {
            Ok(credential) => JoinAnswer::Joined(credential),
            Err(refusal) => {
                tracing::warn!(error = %Chain(&refusal), "a machine may not join");
                JoinAnswer::Refused { reason: refusal.to_string() }
            }
        };
        say(&mut frames, &answer).await;
    }

    async fn join(&self, fleet: &Fleet, frame: &[u8]) -> Result<Credential, Refusal> {
        let JoinRequest { secret, name, request } = serde_json::from_slice(frame).map_err(|_| Refusal::Garbled)?;
        let token = JoinToken::hash_of(&secret).ok_or(Refusal::Unknown)?;
        let (node, name) = (NodeId::new(), tidy(&name));
        let issued = self.issue(&self.authorities.load().current, node, &request)?;
        let (certificate, authority) = (issued.facts.clone(), issued.authority);
        let new = NewNode { id: node, name: name.clone(), certificate, authority };
        let joined = timeout(STORE_DEADLINE, self.store.join_node(token, new)).await;
        match joined.map_err(|_| Refusal::Late)?? {
            Joining::Joined => {}
            Joining::Used => return Err(Refusal::Used),
            Joining::Expired => return Err(Refusal::Expired),
            Joining::Unknown => return Err(Refusal::Unknown),
        }
        tracing::info!(%node, name, "a machine joined the fleet");
        // Else the node's first connection finds it out.
        roster::reload(fleet, &*self.store).await.ok();
        Ok(self.credential(node, &issued))
    }

    /// A new certificate for a node that has shown one of the authority `has`.
    ///
    /// # Errors
    /// The request is not valid, or the node was removed.
    pub(super) async fn renew(
        &self,
        node: NodeId,
        has: Option<Digest>,
        renewal: &Renewal,
    ) -> Result<Credential, Refusal> {
        let issued = self.issue(self.authorities.load().certifier(&renewal.trusts, has), node, &renewal.request)?;
        let noted = timeout(STORE_DEADLINE, self.store.renew_node(node, issued.facts.clone())).await;
        noted.map_err(|_| Refusal::Late)??;
        tracing::info!(%node, "a node renewed its certificate");
        Ok(self.credential(node, &issued))
    }

    fn issue(&self, authority: &Authority, node: NodeId, request: &str) -> Result<Issued, Refusal> {
        let request = base64::decode(request).map_err(|_| Refusal::Garbled)?;
        authority.issue(node, &request, self.args.certificate_lifetime()).map_err(Refusal::Request)
    }

    fn credential(&self, node: NodeId, issued: &Issued) -> Credential {
        Credential {
            node,
            certificate: base64::encode(&issued.der),
            authority: Some(issued.authority),
            lifetime_seconds: self.args.node_certificate_seconds,
            now: Utc::now(),
        }
    }
}

/// Says why a machine cannot join.
pub(super) async fn refuse(stream: Conduit, reason: String) {
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    say(&mut frames, &JoinAnswer::Refused { reason }).await;
}

async fn say(frames: &mut Framed<Conduit, LengthDelimitedCodec>, answer: &JoinAnswer) {
    let frame = serde_json::to_vec(answer).expect("an answer is words and numbers");
    let said = timeout(FRAME_DEADLINE, async {
        frames.send(Bytes::from(frame)).await?;
        SinkExt::<Bytes>::close(frames).await
    });
    if !matches!(said.await, Ok(Ok(()))) {
        tracing::debug!("a machine that wants to join did not wait for the answer");
    }
}

/// A machine's name as it goes into lists and logs.
fn tidy(name: &str) -> String {
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tidy() {
        assert_eq!(tidy(" one\n"), "one");
        assert_eq!(tidy("o\u{1b}[31mne\0"), "o[31mne");
        assert_eq!(tidy(""), "node");
        assert_eq!(tidy(&"ü".repeat(300)).chars().count(), MAX_NAME);
    }
}
