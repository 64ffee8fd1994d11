//! What a call's time at the node went into, told apart. Pure, but for the histograms it ends in.

use std::time::Duration;

use common::phases::{BUCKETS, COLD, ColdCause, FN, Phases, QUEUE, ServerTiming, micros};
use http::HeaderValue;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use crate::sandbox::{Cold, Lease};

/// Splits the wait for `lease`, from the moment when the request was read.
pub(super) fn waited(phases: &mut Phases, wait: Duration, lease: &Lease) {
    let start = lease.cold().map(|cold| cold.took);
    let (queue, cold) = split(wait, lease.queued(), start);
    phases.queue_us = Some(micros(queue));
    phases.cold_us = cold.map(micros);
    phases.cold_cause = lease.cold().and_then(|cold| cold.cause);
}

/// Splits the `wait` for a place in a server, from the moment when the request was read.
pub(super) fn entered(phases: &mut Phases, wait: Duration, cold: Option<Cold>) {
    let (queue, start) = split(wait, wait, cold.map(|cold| cold.took));
    phases.queue_us = Some(micros(queue));
    phases.cold_us = start.map(micros);
    phases.cold_cause = cold.and_then(|cold| cold.cause);
}

/// Of a call that waited for a `start`, what it stood in the queue beyond that is `queue`; all else is `cold`: the
/// start, and looking up the deployment and fetching its build first.
fn split(wait: Duration, queued: Duration, start: Option<Duration>) -> (Duration, Option<Duration>) {
    match start {
        None => (wait, None),
        Some(start) => {
            let queue = queued.saturating_sub(start).min(wait);
            (queue, Some(wait - queue))
        }
    }
}

/// The phases that the node adds to `Server-Timing`; `None` where there are none.
pub(super) fn header(phases: &Phases) -> Option<HeaderValue> {
    let mut timing = ServerTiming::new();
    timing.add_node(phases);
    let text = timing.text();
    (!text.is_empty()).then(|| HeaderValue::try_from(text).expect("words and numbers are a valid header value"))
}

/// The cause of a cold call whose last sandbox nobody remembers.
const UNKNOWN: &str = "unknown";

/// What calls' time went into, and why some were cold.
pub(crate) struct PhaseMetrics {
    queue: Histogram,
    cold: Histogram,
    function: Histogram,
    causes: IntCounterVec,
}

impl PhaseMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "dartcloud_agent_phase_seconds",
                "What the time of calls went into at the node; the gateway has the other phases.",
            )
            .buckets(BUCKETS.to_vec()),
            &["phase"],
        )?;
        let causes = IntCounterVec::new(
            Opts::new("dartcloud_agent_cold_starts_total", "Calls that a sandbox was started for, by why."),
            &["cause"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(causes.clone()))?;
        // `rate` does not see the event that a counter appears with.
        for cause in ColdCause::ALL.map(ColdCause::word).into_iter().chain([UNKNOWN]) {
            drop(causes.with_label_values(&[cause]));
        }
        let [queue, cold, function] = [QUEUE, COLD, FN].map(|phase| seconds.with_label_values(&[phase]));
        Ok(Self { queue, cold, function, causes })
    }

    /// Counts a call.
    pub(crate) fn observe(&self, phases: &Phases) {
        let parts = [(&self.queue, phases.queue_us), (&self.cold, phases.cold_us), (&self.function, phases.fn_us)];
        for (histogram, us) in parts {
            if let Some(us) = us {
                histogram.observe(us as f64 / 1e6);
            }
        }
        if phases.cold_us.is_some() {
            self.causes.with_label_values(&[phases.cold_cause.map_or(UNKNOWN, ColdCause::word)]).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_apart() {
        let check = |wait, queued, start: Option<u64>, queue, cold: Option<u64>| {
            let ms = Duration::from_millis;
            assert_eq!(
                split(ms(wait), ms(queued), start.map(ms)),
                (ms(queue), cold.map(ms)),
                "{wait} {queued} {start:?}"
            );
        };
        // Warm: at once, or after a turn of somebody else's.
        check(0, 0, None, 0, None);
        check(70, 70, None, 70, None);
        // Cold: the start alone; after a wait for memory; after a build was fetched.
        check(400, 400, Some(400), 0, Some(400));
        check(900, 900, Some(400), 500, Some(400));
        check(1900, 900, Some(400), 500, Some(1400));
        // Joined a start that was under way.
        check(150, 150, Some(400), 0, Some(150));
    }
}
