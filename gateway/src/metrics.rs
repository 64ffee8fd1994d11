//! The gateway's metrics. Every label is from a closed set, and every counter of the invoke path is looked up once,
//! at start.

use std::time::Duration;

use common::error::Code;
use common::phases;
use prometheus::{Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::edge::stopwatch::Phases;

/// What kind of request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/f/…`.
    Http,
    /// `POST /api/functions/{id}/invoke`.
    Envelope,
    /// The rest of `/api`.
    Control,
    /// Everything else.
    Other,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was done.
    Success,
    /// The client was wrong.
    Client,
    /// The function was.
    Function,
    /// We were.
    Platform,
    /// The client went away first.
    Gone,
}

const KINDS: [(Kind, &str); 4] =
    [(Kind::Http, "http"), (Kind::Envelope, "envelope"), (Kind::Control, "control"), (Kind::Other, "other")];

const ENDINGS: [(Ending, &str); 5] = [
    (Ending::Success, "success"),
    (Ending::Client, "client"),
    (Ending::Function, "function"),
    (Ending::Platform, "platform"),
    (Ending::Gone, "gone"),
];

/// Upper bounds of the duration histogram, in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The gateway's metrics.
pub(crate) struct Metrics {
    requests: [[IntCounter; ENDINGS.len()]; KINDS.len()],
    durations: [Histogram; KINDS.len()],
    /// Gate, auth and link.
    phases: [Histogram; 3],
    errors: IntCounterVec,
    /// Requests under way.
    pub(crate) in_flight: IntGauge,
    /// Public connections that are open.
    pub(crate) connections: IntGauge,
    /// Public connections that found no seat.
    pub(crate) refused: IntCounter,
    /// What the room for bodies holds, in bytes.
    pub(crate) request_buffer: IntGauge,
    /// The nodes.
    pub(crate) fleet: Fleet,
    /// Link connections that were turned away.
    pub(crate) links_refused: IntCounter,
    /// For how many seconds routes, ended sessions and nodes may have been behind the database.
    pub(crate) behind: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// The registry has metrics of the same names: a gateway was built twice on it.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("dartcloud_gateway_requests_total", "Requests, by kind and by who was at fault, if anybody"),
            &["kind", "outcome"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new("dartcloud_gateway_request_duration_seconds", "From a request's head to its answer's")
                .buckets(BUCKETS.to_vec()),
            &["kind"],
        )?;
        let phase_seconds = HistogramVec::new(
            HistogramOpts::new(
                "dartcloud_gateway_phase_seconds",
                "What the time of calls went into at the gateway; nodes have the other phases",
            )
            .buckets(phases::BUCKETS.to_vec()),
            &["phase"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new("dartcloud_gateway_errors_total", "Errors that were answered, by code and fault"),
            &["code", "fault"],
        )?;
        let in_flight = IntGauge::new("dartcloud_gateway_requests_in_flight", "Requests under way")?;
        let connections = IntGauge::new("dartcloud_gateway_connections", "Public connections that are open")?;
        let refused = IntCounter::new(
            "dartcloud_gateway_connections_refused_total",
            "Public connections that were refused, since there were too many",
        )?;
        let request_buffer =
            IntGauge::new("dartcloud_gateway_request_buffer_bytes", "Bodies of calls that are gathered at the edge")?;
        let links_refused = IntCounter::new(
            "dartcloud_gateway_links_refused_total",
            "Link connections that were turned away: strangers, removed nodes, other versions, silence, crowds",
        )?;
        let behind = Gauge::new(
            "dartcloud_gateway_behind_seconds",
            "For how long routes, ended sessions and nodes may have been behind the database; 0 while they are not",
        )?;
        registry.register(Box::new(behind.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(phase_seconds.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(request_buffer.clone()))?;
        registry.register(Box::new(links_refused.clone()))?;
        // `rate` does not see the event that a counter appears with.
        for code in Code::ALL {
            drop(errors.with_label_values(&[code.word(), code.fault().word()]));
        }
        Ok(Self {
            requests: KINDS.map(|(_, kind)| ENDINGS.map(|(_, outcome)| requests.with_label_values(&[kind, outcome]))),
            durations: KINDS.map(|(_, kind)| durations.with_label_values(&[kind])),
            phases: [phases::GATE, phases::AUTH, phases::LINK].map(|phase| phase_seconds.with_label_values(&[phase])),
            errors,
            in_flight,
            connections,
            refused,
            request_buffer,
            fleet: Fleet::register(registry)?,
            links_refused,
            behind,
        })
    }

    /// Counts a request that is over.
    pub(crate) fn request(&self, kind: Kind, ending: Ending, duration: Duration) {
        self.requests[kind as usize][ending as usize].inc();
        self.durations[kind as usize].observe(duration.as_secs_f64());
    }

    /// Counts what a call's time went into here.
    pub(crate) fn phases(&self, phases: &Phases) {
        for (histogram, us) in self.phases.iter().zip([phases.gate, phases.auth, phases.link]) {
            if let Some(us) = us {
                histogram.observe(us as f64 / 1e6);
            }
        }
    }

    /// Counts an error that is answered.
    pub(crate) fn error(&self, code: Code) {
        self.errors.with_label_values(&[code.word(), code.fault().word()]).inc();
    }
}

/// The metrics of the nodes.
pub(crate) struct Fleet {
    nodes: IntGauge,
    suspected_nodes: IntGauge,
    ejected_nodes: IntGauge,
    /// Nodes that were ejected.
    pub(crate) ejections: IntCounter,
    /// Not made, and made.
    retries: [IntCounter; 2],
}

impl Fleet {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let nodes = IntGauge::new("dartcloud_gateway_nodes", "Nodes that are linked")?;
        let suspected_nodes = IntGauge::new(
            "dartcloud_gateway_nodes_suspected",
            "Of these, those that have been silent for two seconds",
        )?;
        let ejected_nodes = IntGauge::new(
            "dartcloud_gateway_nodes_ejected",
            "Of these, those that get no new calls for a while, since too many failed",
        )?;
        let ejections = IntCounter::new(
            "dartcloud_gateway_ejections_total",
            "How often a node was ejected, since too many of its calls failed by the platform's fault",
        )?;
        let retries = IntCounterVec::new(
            Opts::new(
                "dartcloud_gateway_retries_total",
                "Calls that their node did not take: sent to a second one, or not, since too many were",
            ),
            &["result"],
        )?;
        registry.register(Box::new(nodes.clone()))?;
        registry.register(Box::new(suspected_nodes.clone()))?;
        registry.register(Box::new(ejected_nodes.clone()))?;
        registry.register(Box::new(ejections.clone()))?;
        registry.register(Box::new(retries.clone()))?;
        Ok(Self {
            nodes,
            suspected_nodes,
            ejected_nodes,
            ejections,
            retries: ["over_budget", "sent"].map(|result| retries.with_label_values(&[result])),
        })
    }

    /// Notes how many nodes are linked, and how many of them are avoided.
    pub(crate) fn nodes(&self, linked: usize, suspected: usize, ejected: usize) {
        let gauges = [&self.nodes, &self.suspected_nodes, &self.ejected_nodes];
        for (gauge, count) in gauges.into_iter().zip([linked, suspected, ejected]) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a call that its node did not take.
    pub(crate) fn retry(&self, is_made: bool) {
        self.retries[usize::from(is_made)].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_their_places() {
        assert!(KINDS.iter().enumerate().all(|(place, (kind, _))| *kind as usize == place));
        assert!(ENDINGS.iter().enumerate().all(|(place, (ending, _))| *ending as usize == place));
    }
}
