//! What the control API counts about its requests; what a module alone knows is counted beside it.

use std::time::Duration;

use common::error::Code;
use http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};
use store::artifacts::Artifact;

/// The route of a request that no route takes.
const NO_ROUTE: &str = "none";

/// Requests and failures, whether the stores answer, and what was swept away.
pub(crate) struct Metrics {
    seconds: HistogramVec,
    failures: IntCounterVec,
    store_up: IntGauge,
    artifacts_up: IntGauge,
    artifacts_removed: IntCounterVec,
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
        let artifacts_up =
            IntGauge::new("dartcloud_control_artifacts_up", "1 while the artifact store answers, 0 while it does not")?;
        let artifacts_removed = IntCounterVec::new(
            Opts::new(
                "dartcloud_control_artifacts_removed_total",
                "Artifacts that no version needed any more, by kind",
            ),
            &["kind"],
        )?;
        // A gateway does not start without them.
        store_up.set(1);
        artifacts_up.set(1);
        registry.register(Box::new(artifacts_up.clone()))?;
        registry.register(Box::new(artifacts_removed.clone()))?;
        registry.register(Box::new(store_up.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self { seconds, failures, store_up, artifacts_up, artifacts_removed })
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

    /// The artifact store answered, or did not.
    pub(crate) fn artifacts(&self, answers: bool) {
        self.artifacts_up.set(answers.into());
    }

    /// Whether the artifact store answered when it was asked last.
    pub(crate) fn artifacts_answer(&self) -> bool {
        self.artifacts_up.get() == 1
    }

    /// An artifact is gone.
    pub(crate) fn artifact_removed(&self, artifact: Artifact) {
        let kind = match artifact {
            Artifact::Archive(_) => "archive",
            Artifact::Build(_) => "build",
        };
        self.artifacts_removed.with_label_values(&[kind]).inc();
    }

    /// An answer was a failure.
    pub(crate) fn failed(&self, code: Code) {
        self.failures.with_label_values(&[code.word(), code.fault().word()]).inc();
    }
}
