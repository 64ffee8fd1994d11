//! A call of a server from its arrival to its record. Whatever becomes of the call, its record is written: at the
//! latest when the story is dropped, which says that the client left.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use common::error::{Chain, Code, PublicError};
use common::function::DeploymentSpec;
use common::ids::InvocationId;
use common::invocation::{ExecutionError, Outcome, Record, RequestInfo};
use common::phases::{Phases, micros};
use http::StatusCode;

use super::record::{self, Begun, Called};
use super::trouble::{Trouble, Verdict};
use super::{Invocations, Order, phases};
use crate::server::{Excerpt, NoServer, Seat};
use crate::spool;

/// A call under way.
pub(super) struct Story {
    invocations: Arc<Invocations>,
    spec: Arc<DeploymentSpec>,
    id: InvocationId,
    info: RequestInfo,
    arrived: DateTime<Utc>,
    clock: Instant,
    /// What its time went into before it had its place.
    phases: Phases,
    /// Its place in the server, and since when it has it.
    seat: Option<(Seat, Instant)>,
    /// What the server answered.
    answered: Option<StatusCode>,
    /// Its beginning on disk, once it streams.
    begun: Option<spool::Begun>,
    over: bool,
}

impl Story {
    pub(super) fn new(
        invocations: &Arc<Invocations>,
        spec: Arc<DeploymentSpec>,
        order: &Order,
        info: RequestInfo,
        (clock, arrived): (Instant, DateTime<Utc>),
    ) -> Self {
        Self {
            invocations: Arc::clone(invocations),
            spec,
            id: order.id,
            info,
            arrived,
            clock,
            phases: order.phases,
            seat: None,
            answered: None,
            begun: None,
            over: false,
        }
    }

    pub(super) fn id(&self) -> InvocationId {
        self.id
    }

    pub(super) fn spec(&self) -> &DeploymentSpec {
        &self.spec
    }

    pub(super) fn invocations(&self) -> &Arc<Invocations> {
        &self.invocations
    }

    /// Finds it a place in the server.
    ///
    /// # Errors
    /// There is none; the record says so.
    pub(super) async fn enter(&mut self) -> Result<(), Verdict> {
        let waits = Instant::now();
        let entered = self.invocations.parts.servers.enter(&self.spec, self.id).await;
        let now = Instant::now();
        phases::entered(&mut self.phases, now - waits, entered.as_ref().ok().and_then(|seat| seat.cold));
        match entered {
            Ok(seat) => {
                self.seat = Some((seat, now));
                Ok(())
            }
            Err(none) => Err(self.fail_early(none)),
        }
    }

    /// Its place, once it has entered.
    pub(super) fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref().map(|(seat, _)| seat)
    }

    /// The server answered.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.answered = Some(status);
    }

    /// Writes its beginning to disk: from here on bytes may leave.
    ///
    /// # Errors
    /// The disk does not take it, so nothing may leave.
    pub(super) fn begin(&mut self) -> Result<(), PublicError> {
        let failure = ExecutionError {
            phase: "execution".to_owned(),
            message: "The node stopped before the call ended".to_owned(),
            code: Code::NodeLost.word().to_owned(),
        };
        let record = self.record(Outcome::Crashed, Some(failure), 1, None);
        let begun = self.invocations.parts.spool.begin(&record).map_err(|error| {
            let error = Chain(&error);
            tracing::error!(%error, request_id = %self.id, "a stream's beginning could not be written");
            PublicError::new(Code::Internal, "The call's record could not be written; the node's log has the cause")
        })?;
        self.begun = Some(begun);
        Ok(())
    }

    /// Its answer is whole.
    ///
    /// # Errors
    /// Its record could not be written, so its last byte may not leave.
    pub(super) async fn succeed(mut self) -> Result<(), PublicError> {
        self.flush().await;
        self.end(Outcome::Success, None, 0)
    }

    /// The client left, which is how streams end that have no end.
    pub(super) async fn leave(self) {
        self.flush().await;
    }

    /// It failed.
    pub(super) async fn fail(mut self, trouble: Trouble) -> Result<Verdict, PublicError> {
        self.flush().await;
        let verdict = trouble.verdict(&self.spec);
        self.end(verdict.outcome, Some(verdict.failure.clone()), verdict.exit_code)?;
        Ok(verdict)
    }

    /// The phases so far.
    pub(super) fn phases(&self) -> Phases {
        Phases { fn_us: self.seat.as_ref().map(|(_, since)| micros(since.elapsed())), ..self.phases }
    }

    async fn flush(&self) {
        if let Some(seat) = self.seat() {
            seat.flush().await;
        }
    }

    fn fail_early(&mut self, none: NoServer) -> Verdict {
        let printed = match &none {
            NoServer::NoSandbox(_) | NoServer::Unstartable(_) => None,
            NoServer::Deaf(_, told) | NoServer::Ended(_, told) => {
                Some(std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner)))
            }
        };
        let verdict = Trouble::NoServer(none).verdict(&self.spec);
        self.over = true;
        let record = self.record(verdict.outcome, Some(verdict.failure.clone()), verdict.exit_code, printed.as_ref());
        match self.invocations.keep(&record, self.clock.elapsed()) {
            Ok(()) => verdict,
            Err(public) => Verdict { public, ..verdict },
        }
    }

    fn end(&mut self, outcome: Outcome, failure: Option<ExecutionError>, exit_code: i32) -> Result<(), PublicError> {
        self.over = true;
        let printed = self.seat().map(Seat::take_printed);
        let record = self.record(outcome, failure, exit_code, printed.as_ref());
        // A record that is not kept leaves its beginning, which the next start ships.
        self.invocations.keep(&record, self.clock.elapsed())?;
        if let Some(begun) = self.begun.take() {
            self.invocations.parts.spool.end(begun);
        }
        Ok(())
    }

    fn record(
        &self,
        outcome: Outcome,
        failure: Option<ExecutionError>,
        exit_code: i32,
        printed: Option<&Excerpt>,
    ) -> Record {
        let begun = Begun {
            id: self.id,
            node: self.invocations.parts.node,
            spec: &self.spec,
            info: self.info.clone(),
            arrived: self.arrived,
            phases: self.phases(),
        };
        let called = Called {
            outcome,
            failure,
            exit_code,
            printed,
            status: self.answered,
            served: self.seat.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed()),
        };
        record::of_call(begun, called, self.clock.elapsed(), Utc::now())
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Who had the answer's head got what he came for, and left when it pleased him.
        let outcome = if self.answered.is_some() { Outcome::Success } else { Outcome::ClientGone };
        if let Err(error) = self.end(outcome, None, 0) {
            tracing::error!(%error, request_id = %self.id, "a call that its client left has no record");
        }
    }
}
