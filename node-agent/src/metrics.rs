//! What the agent counts, beside what its sandboxes count themselves. Labels come from closed sets, and each word of
//! them is there from the start: a counter that appears with its first event hides that event from `rate`.

use std::sync::Arc;

use common::invocation::Outcome;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::invocation::PhaseMetrics;

/// The agent's metrics.
pub(crate) struct Metrics {
    /// Calls that ended, by outcome.
    pub(crate) invocations: IntCounterVec,
    /// From a call's arrival at the agent to its outcome, in seconds.
    pub(crate) invocation_seconds: Histogram,
    /// What calls' time went into.
    pub(crate) phases: PhaseMetrics,
    /// Records that wait for the store.
    pub(crate) spool_records: IntGauge,
    /// Bytes of the spool on disk.
    pub(crate) spool_bytes: IntGauge,
    /// Most bytes that the spool may have.
    pub(crate) spool_max_bytes: IntGauge,
    /// When the call was that the oldest waiting record is of, in seconds since 1970; 0 while none waits.
    pub(crate) spool_oldest: IntGauge,
    /// Records that the store never got.
    pub(crate) spool_dropped: IntCounter,
    /// Damaged places in the spool.
    pub(crate) spool_corrupt: IntCounter,
    /// Calls with an `Idempotency-Key`, by one of [`REPEAT_RESULTS`].
    pub(crate) answers_calls: IntCounterVec,
    /// Bytes that answers take on disk which are kept for their repeats.
    pub(crate) answers_bytes: IntGauge,
    /// Answers that had to make room.
    pub(crate) answers_evicted: IntCounter,
    /// Answers that were sent while a sandbox was started.
    pub(crate) stale_answers: IntCounter,
    /// Builds that ended, by one of [`BUILD_RESULTS`].
    pub(crate) builds: IntCounterVec,
    /// How long builds that ran took, in seconds.
    pub(crate) build_seconds: Histogram,
    /// Bytes of the build cache.
    pub(crate) build_cache_bytes: IntGauge,
    /// Builds that were removed to make room.
    pub(crate) build_cache_evicted: IntCounter,
    /// Open work connections to gateways.
    pub(crate) link_connections: IntGauge,
    /// Versions that are to be warm and are.
    pub(crate) kept_versions: IntGauge,
    /// When this node's certificate ends, in seconds of Unix time; 0 where it needs none.
    pub(crate) certificate_expires: IntGauge,
}

/// What becomes of calls with an `Idempotency-Key`.
const REPEAT_RESULTS: [&str; 4] = ["first", "repeat", "reused", "under_way"];
/// How builds end.
const BUILD_RESULTS: [&str; 5] = ["built", "cached", "fetched", "failed", "error"];

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// The registry has one of these names already.
    pub(crate) fn new(registry: &Registry) -> Result<Arc<Self>, prometheus::Error> {
        let counter = |name: &str, help: &str| keep(registry, IntCounter::new(name, help)?);
        let counters = |name: &str, help: &str, label, words: &[&str]| {
            let vec = keep(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)?;
            words.iter().for_each(|word| drop(vec.with_label_values(&[word])));
            Ok::<_, prometheus::Error>(vec)
        };
        let gauge = |name: &str, help: &str| keep(registry, IntGauge::new(name, help)?);
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            keep(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
        };
        let call_buckets = prometheus::exponential_buckets(0.0005, 2.0, 18)?;
        let build_buckets = prometheus::exponential_buckets(0.1, 2.0, 14)?;
        Ok(Arc::new(Self {
            invocations: counters(
                "dartcloud_agent_invocations_total",
                "Calls that ended, by outcome.",
                "outcome",
                &Outcome::ALL.map(Outcome::word),
            )?,
            invocation_seconds: histogram(
                "dartcloud_agent_invocation_duration_seconds",
                "From a call's arrival at the agent to its outcome.",
                call_buckets,
            )?,
            phases: PhaseMetrics::new(registry)?,
            spool_records: gauge("dartcloud_agent_spool_records", "Records that wait for the store.")?,
            spool_bytes: gauge("dartcloud_agent_spool_bytes", "Size of the record spool on disk.")?,
            spool_max_bytes: gauge("dartcloud_agent_spool_max_bytes", "Most that the record spool may take on disk.")?,
            spool_oldest: gauge(
                "dartcloud_agent_spool_oldest_timestamp_seconds",
                "When the call was that the oldest waiting record is of; 0 while none waits.",
            )?,
            spool_dropped: counter(
                "dartcloud_agent_spool_dropped_records_total",
                "Records that the store never got: the spool was full, or the store refused them.",
            )?,
            spool_corrupt: counter("dartcloud_agent_spool_corrupt_total", "Damaged places in the spool, skipped.")?,
            answers_calls: counters(
                "dartcloud_agent_idempotent_calls_total",
                "Calls with an Idempotency-Key, by what became of them.",
                "result",
                &REPEAT_RESULTS,
            )?,
            answers_bytes: gauge("dartcloud_agent_idempotent_bytes", "Size of the answers kept for repeated calls.")?,
            answers_evicted: counter(
                "dartcloud_agent_idempotent_evicted_total",
                "Answers that had to make room before their time: a repeat of their calls runs again.",
            )?,
            stale_answers: counter(
                "dartcloud_agent_stale_answers_total",
                "Answers of before that were sent while a sandbox was started (stale_while_cold_ms).",
            )?,
            builds: counters("dartcloud_agent_builds_total", "Builds that ended, by how.", "result", &BUILD_RESULTS)?,
            build_seconds: histogram("dartcloud_agent_build_duration_seconds", "How long builds took.", build_buckets)?,
            build_cache_bytes: gauge("dartcloud_agent_build_cache_bytes", "Size of the build cache.")?,
            build_cache_evicted: counter("dartcloud_agent_build_cache_evicted_total", "Builds removed to make room.")?,
            kept_versions: gauge(
                "dartcloud_agent_kept_versions",
                "Versions with min_warm, all of whose sandboxes on this node are there.",
            )?,
            certificate_expires: gauge(
                "dartcloud_agent_certificate_expires_timestamp_seconds",
                "When this node's certificate ends; 0 where it needs none.",
            )?,
            link_connections: gauge("dartcloud_agent_link_connections", "Open work connections to gateways.")?,
        }))
    }
}

fn keep<C>(registry: &Registry, collector: C) -> Result<C, prometheus::Error>
where
    C: prometheus::core::Collector + Clone + 'static,
{
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
