//! What sandboxes tell Prometheus.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Counters of one node's sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Starting, idle and busy.
    states: [IntGauge; 3],
    blank: IntGauge,
    pub(crate) started: IntCounter,
    /// Of those that started: out of a blank one.
    pub(crate) from_blank: IntCounter,
    pub(crate) failed: IntCounter,
    pub(crate) start_seconds: Histogram,
    pub(crate) evictions: IntCounter,
    pub(crate) idle_removals: IntCounter,
    frozen: IntGauge,
    pub(crate) freezes: IntCounter,
    pub(crate) engine_up: IntGauge,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let states = IntGaugeVec::new(Opts::new("dartcloud_sandbox_count", "Sandboxes, by what they do."), &["state"])?;
        let starts =
            IntCounterVec::new(Opts::new("dartcloud_sandbox_starts_total", "Starts of sandboxes."), &["result"])?;
        let from_blank = IntCounter::new(
            "dartcloud_sandbox_blanks_used_total",
            "Starts of sandboxes that found a blank one ready.",
        )?;
        let start_seconds = Histogram::with_opts(
            HistogramOpts::new("dartcloud_sandbox_start_seconds", "Time of a sandbox's start, once it was its turn.")
                .buckets(vec![0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]),
        )?;
        let evictions = IntCounter::new(
            "dartcloud_sandbox_evictions_total",
            "Idle sandboxes removed because others needed their memory.",
        )?;
        let idle_removals = IntCounter::new(
            "dartcloud_sandbox_idle_removals_total",
            "Sandboxes removed because nobody called them for SANDBOX_IDLE_SECONDS.",
        )?;
        let frozen = IntGauge::new("dartcloud_sandbox_frozen_count", "Idle sandboxes whose processes are frozen.")?;
        let freezes = IntCounter::new("dartcloud_sandbox_freezes_total", "Freezes of idle sandboxes.")?;
        let engine_up = IntGauge::new(
            "dartcloud_sandbox_engine_up",
            "Whether the Docker Engine answers: 1, or 0 while it does not.",
        )?;
        engine_up.set(1);
        registry.register(Box::new(engine_up.clone()))?;
        registry.register(Box::new(frozen.clone()))?;
        registry.register(Box::new(freezes.clone()))?;
        registry.register(Box::new(states.clone()))?;
        registry.register(Box::new(starts.clone()))?;
        registry.register(Box::new(from_blank.clone()))?;
        registry.register(Box::new(start_seconds.clone()))?;
        registry.register(Box::new(evictions.clone()))?;
        registry.register(Box::new(idle_removals.clone()))?;
        Ok(Self {
            states: ["starting", "warm", "busy"].map(|state| states.with_label_values(&[state])),
            blank: states.with_label_values(&["blank"]),
            from_blank,
            started: starts.with_label_values(&["ok"]),
            failed: starts.with_label_values(&["failed"]),
            start_seconds,
            evictions,
            idle_removals,
            frozen,
            freezes,
            engine_up,
        })
    }

    /// Shows how many sandboxes are starting, idle and busy, how many are blank, and how many of all are frozen.
    pub(crate) fn show(&self, states: [usize; 3], blank: usize, frozen: usize) {
        self.frozen.set(i64::try_from(frozen).unwrap_or(i64::MAX));
        for (gauge, count) in self.states.iter().chain([&self.blank]).zip(states.into_iter().chain([blank])) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
