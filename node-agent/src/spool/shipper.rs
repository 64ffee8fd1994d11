//! Takes records out of the spool in batches and gives them to the sink, in the order of writing.

use std::sync::Arc;
use std::time::Duration;

use common::error::Chain;
use common::invocation::Record;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Spool;
use super::segment::{self, Position, Segment};
use super::sink::{Ship, ShipError};
use crate::backoff::Backoff;

/// Most records of a batch.
const BATCH_RECORDS: usize = 500;
/// Most bytes of a batch as it lies in the spool; a gateway takes as much in one body.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Least time between the beginnings of two batches that are not full, so that records come together. The first one
/// after a quiet time goes at once: whoever calls a function and then asks for its log finds the call there.
const LINGER: Duration = Duration::from_millis(100);
/// How long the sink has for a batch.
const SHIP_DEADLINE: Duration = Duration::from_secs(30);
/// How many records may be refused before any is taken, until the sink is taken to refuse all.
const MAX_REFUSED: usize = 8;
/// How long shipping goes on after the stop.
const LAST_DEADLINE: Duration = Duration::from_secs(5);

/// What was read, and where the next batch begins.
struct Batch {
    records: Vec<Record>,
    segment: u64,
    end: u64,
}

pub(super) async fn run(spool: &Arc<Spool>, sink: &dyn Ship, stop: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut next = Instant::now();
    while !stop.is_cancelled() {
        let appended = spool.appended.notified();
        if spool.pending() == 0 {
            tokio::select! { () = appended => {}, () = stop.cancelled() => break }
        }
        if spool.pending() < BATCH_RECORDS as u64 {
            tokio::select! { () = sleep_until(next) => {}, () = stop.cancelled() => break }
        }
        next = Instant::now() + LINGER;
        let shipped = tokio::select! { shipped = ship_next(spool, sink) => shipped, () = stop.cancelled() => break };
        match shipped {
            Ok(()) => {
                if backoff.failures() > 0 {
                    tracing::info!("the store takes records again");
                }
                backoff.reset();
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    let error = Chain(&error);
                    tracing::warn!(%error, "records wait in the spool until the store takes them");
                }
                tokio::select! { () = backoff.wait() => {}, () = stop.cancelled() => break }
            }
        }
    }
    let deadline = Instant::now() + LAST_DEADLINE;
    while spool.pending() > 0 {
        if !matches!(timeout_at(deadline, ship_next(spool, sink)).await, Ok(Ok(()))) {
            tracing::info!(records = spool.pending(), "records stay in the spool and are shipped after the next start");
            break;
        }
    }
}

/// Ships one batch and marks it as shipped. What the sink refuses is halved until only that is dropped; but a sink
/// that refuses everything has no schema yet, or no disk, and then nothing is dropped.
async fn ship_next(spool: &Arc<Spool>, sink: &dyn Ship) -> Result<(), ShipError> {
    let reader = Arc::clone(spool);
    let read = tokio::task::spawn_blocking(move || reader.next_batch()).await;
    let Some(batch) = read.map_err(|error| ShipError::Unreachable(error.into()))? else { return Ok(()) };
    spool.metrics.spool_oldest.set(batch.records[0].created_at.timestamp());
    let (mut parts, mut refused, mut some_taken) = (vec![&batch.records[..]], Vec::new(), false);
    while let Some(part) = parts.pop() {
        match ship_part(sink, part).await {
            Ok(()) => some_taken = true,
            Err(ShipError::Refused(_)) if part.len() > 1 => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Err(ShipError::Refused(source)) => {
                if !some_taken && refused.len() == MAX_REFUSED {
                    return Err(ShipError::Refused(source));
                }
                refused.push((part[0].id, source));
            }
            Err(error) => return Err(error),
        }
    }
    if !some_taken {
        if let Some((_, source)) = refused.pop() {
            return Err(ShipError::Refused(source));
        }
    }
    for (id, source) in refused {
        spool.metrics.spool_dropped.inc();
        let error = Chain(&*source);
        tracing::error!(request_id = %id, %error, "a record that the store refuses is dropped");
    }
    let (marker, records) = (Arc::clone(spool), batch.records.len() as u64);
    let marked = tokio::task::spawn_blocking(move || marker.mark_shipped(batch.segment, batch.end, records)).await;
    marked.map_err(|error| ShipError::Unreachable(error.into()))
}

async fn ship_part(sink: &dyn Ship, part: &[Record]) -> Result<(), ShipError> {
    match timeout(SHIP_DEADLINE, sink.ship(part)).await {
        Ok(shipped) => shipped,
        Err(elapsed) => Err(ShipError::Unreachable(elapsed.into())),
    }
}

impl Spool {
    /// Reads the next batch; `None` when all is shipped. The bytes come from the page cache as a rule: they were
    /// written a moment ago.
    fn next_batch(&self) -> Option<Batch> {
        loop {
            let (number, segment) = self.next_segment()?;
            let rest = segment.bytes - segment.shipped;
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(BATCH_BYTES);
            let bytes = match segment::read(&self.directory, number, segment.shipped, length) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(%error, segment = number, "a segment of the spool cannot be read: it is given up");
                    self.metrics.spool_dropped.inc_by(segment.unshipped);
                    self.mark_shipped(number, segment.bytes, segment.unshipped);
                    continue;
                }
            };
            let scan = segment::scan(&bytes, BATCH_RECORDS, length as u64 == rest);
            self.metrics.spool_corrupt.inc_by(scan.corrupt + u64::from(scan.torn));
            let end = if scan.torn { segment.bytes } else { segment.shipped + scan.end as u64 };
            if !scan.records.is_empty() {
                return Some(Batch { records: scan.records, segment: number, end });
            }
            self.mark_shipped(number, end, 0);
        }
    }

    /// The oldest segment with something to ship.
    fn next_segment(&self) -> Option<(u64, Segment)> {
        let state = self.lock();
        state.segments.iter().find(|(_, segment)| !segment.is_shipped()).map(|(number, segment)| (*number, *segment))
    }

    /// Notes that a segment is shipped up to `end`, on disk too, and removes what is shipped whole.
    fn mark_shipped(&self, number: u64, end: u64, records: u64) {
        let done = self.mark(number, end, records);
        // The lock is free: a call that appends its record never waits for the disk to make or remove a file.
        if let Err(error) = segment::write_position(&self.directory, Position { segment: number, offset: end }) {
            tracing::warn!(%error, "the spool's position could not be written down: a restart ships some records twice");
        }
        for number in done {
            if let Err(error) = std::fs::remove_file(segment::path(&self.directory, number)) {
                tracing::warn!(%error, segment = number, "a shipped segment of the spool could not be removed");
            }
        }
    }

    /// The segments that are shipped whole, and are forgotten now.
    fn mark(&self, number: u64, end: u64, records: u64) -> Vec<u64> {
        let mut state = self.lock();
        // The segment may have been dropped meanwhile, because the spool was full.
        if let Some(segment) = state.segments.get_mut(&number) {
            segment.mark(end, records);
        }
        let newest = state.newest();
        let shipped = state.segments.range(..newest).filter(|(_, segment)| segment.is_shipped());
        let done: Vec<u64> = shipped.map(|(number, _)| *number).collect();
        for number in &done {
            state.segments.remove(number);
        }
        // What waits beyond this batch is looked at when it is read, at once.
        if state.records() == 0 {
            self.metrics.spool_oldest.set(0);
        }
        self.show(&state);
        done
    }
}

/// So that a batch always holds at least one whole entry.
const _: () = assert!(BATCH_BYTES > segment::MAX_ENTRY_BYTES + 8);
