//! Who calls: the user behind the access token.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use common::error::Code;
use common::ids::UserId;
use http::request::Parts;

use super::State;
use super::error::Failure;

/// The user whose valid access token the request bears. A handler that takes one is closed to everybody else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller(pub(crate) UserId);

/// The operator, as a [`Caller`]. A handler that takes one is closed to other users, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator(pub(crate) UserId);

impl FromRequestParts<Arc<State>> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Failure> {
        let Caller(id) = Caller::from_request_parts(parts, state).await?;
        match state.store.user(id).await? {
            Some(user) if user.operator => Ok(Self(id)),
            _ => Err(Failure::new(Code::Forbidden, "nodes are the operator's: ask him, or sign in as him")),
        }
    }
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Failure> {
        let denied = |denied: crate::edge::identity::Denied| Failure::new(Code::Unauthorized, denied.to_string());
        state.identity.bearer(&parts.headers).map(Self).map_err(denied)
    }
}
