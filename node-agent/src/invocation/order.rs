//! What the gateway says of a call, in the headers of its order. Pure.

use common::digest::Digest;
use common::ids::{DeploymentId, InvocationId};
use common::phases::Phases;
use common::protocol::{AUTH_US, DEPLOYMENT, FORM, FORM_ENVELOPE, FORM_HTTP, GATE_US, INVOCATION, ONCE};
use http::HeaderMap;

/// How the client's request stands to the function's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It is the same.
    Http,
    /// It is described in the body.
    Envelope,
}

/// What an order says of a call.
pub(super) struct Order {
    pub(super) id: InvocationId,
    pub(super) deployment: DeploymentId,
    pub(super) form: Form,
    /// Set where the call runs once, however often it comes.
    pub(super) once: Option<Digest>,
    /// What the gateway says of its own.
    pub(super) phases: Phases,
}

impl Order {
    /// Reads an order's headers.
    ///
    /// # Errors
    /// They are of a version that this one does not know.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, &'static str> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = text(INVOCATION).and_then(|text| text.parse().ok()).ok_or("no valid invocation id")?;
        let deployment = text(DEPLOYMENT).and_then(|text| text.parse().ok()).ok_or("no valid deployment id")?;
        let form = match text(FORM) {
            Some(FORM_HTTP) => Form::Http,
            Some(FORM_ENVELOPE) => Form::Envelope,
            _ => return Err("no known form"),
        };
        let once = match text(ONCE) {
            Some(key) => Some(key.parse().map_err(|_| "no valid key")?),
            None => None,
        };
        let us = |name| text(name).and_then(|text| text.parse().ok());
        let phases = Phases { gate_us: us(GATE_US), auth_us: us(AUTH_US), ..Phases::default() };
        Ok(Self { id, deployment, form, once, phases })
    }
}
