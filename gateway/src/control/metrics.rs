//! What the control API counts about its requests; what a module alone knows is counted beside it.

use std::time::Duration;

use common::error::Code;
use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// The route of a request that no route takes.
const NO_ROUTE: &str = "none";

/// Requests and failures, and whether the store answers.
pub(crate) struct Metrics {
    seconds: HistogramVec,
    failures: IntCounterVec,
    store_up: IntGauge,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = HistogramVec::new(
            HistogramOpts::new("dartcloud_control_request_seconds", "Time until an answer begins, by route and status")
                .buckets(vec![0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0]),
            &["route", "status"],
        )?;
        let failures = IntCounterVec::new(
            Opts::new("dartcloud_control_failures_total", "Error answers by their code and whose fault they are"),
            &["code", "fault"],
        )?;
        let store_up = IntGauge::new("dartcloud_control_store_up", "1 while the store answers, 0 while it does not")?;
        // A gateway does not start without one.
        store_up.set(1);
        registry.register(Box::new(store_up.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self { seconds, failures, store_up })
    }

    /// An answer began. `route` is the route's pattern, never the path that was asked for.
    pub(crate) fn answered(&self, route: Option<&str>, status: StatusCode, took: Duration) {
        let labels = [route.unwrap_or(NO_ROUTE), status.as_str()];
        self.seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// The store answered, or did not.
    pub(crate) fn store(&self, answers: bool) {
        self.store_up.set(answers.into());
    }

    /// An answer was a failure.
    pub(crate) fn failed(&self, code: Code) {
        self.failures.with_label_values(&[code.word(), code.fault().word()]).inc();
    }
}
