//! What was measured: a row for each target, with both sides, what exactly was compared, and whether the target is met.

use std::time::Duration;

use serde::Serialize;

use crate::load::Sample;
use crate::machine::{Cores, Description};
use crate::stats::{Latencies, Quantile, median};

/// What a measured number should be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// No target: shown because it explains another row.
    Shown,
}

impl Bound {
    pub(crate) fn is_met(self, measured: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(measured <= bound),
            Self::AtLeast(bound) => Some(measured >= bound),
            Self::Shown => None,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", number(bound)),
            Self::AtLeast(bound) => format!("≥ {}", number(bound)),
            Self::Shown => "–".to_owned(),
        }
    }

    /// How far `measured` is from the bound: 1 is on it, more is better.
    pub(crate) fn margin(self, measured: f64) -> Option<f64> {
        match self {
            Self::AtMost(bound) => Some(bound / measured),
            Self::AtLeast(bound) => Some(measured / bound),
            Self::Shown => None,
        }
    }
}

/// One side, round by round.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) rounds: Vec<f64>,
    pub(crate) median: f64,
    /// CPU time a request, in microseconds, where processes were watched.
    pub(crate) cpu_us: Option<f64>,
    /// The latencies of all rounds together.
    pub(crate) quantiles: Vec<Quantile>,
}

impl Side {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Self {
        let median = median(&rounds);
        Self { name: name.into(), unit, rounds, median, ..Self::default() }
    }

    /// The p50 of each round.
    pub(crate) fn p50(name: impl Into<String>, rounds: &[Latencies]) -> Self {
        let side = Self::new(name, "µs", rounds.iter().map(|round| round.at(0.5)).collect());
        Self { quantiles: Latencies::joined(rounds).quantiles(), ..side }
    }

    /// Requests that one core of the watched processes would serve in a second.
    pub(crate) fn per_core(name: impl Into<String>, rounds: &[Sample]) -> Self {
        let side = Self::new(name, "req/s per core", rounds.iter().map(|round| 1e6 / round.cpu_us.max(0.1)).collect());
        side.with_load(rounds)
    }

    /// CPU time of the watched processes for a request, in microseconds.
    pub(crate) fn cpu(name: impl Into<String>, rounds: &[Sample]) -> Self {
        Self::new(name, "µs CPU", rounds.iter().map(|round| round.cpu_us).collect()).with_load(rounds)
    }

    /// Requests a second.
    pub(crate) fn per_second(name: impl Into<String>, rounds: &[Sample]) -> Self {
        Self::new(name, "calls/s", rounds.iter().map(|round| round.per_second).collect()).with_load(rounds)
    }

    /// Says what CPU time these calls took of the watched processes.
    pub(crate) fn with_cpu(self, time: Duration, calls: usize) -> Self {
        Self { cpu_us: Some(time.as_secs_f64() * 1e6 / calls.max(1) as f64), ..self }
    }

    fn with_load(self, rounds: &[Sample]) -> Self {
        let cpu = median(&rounds.iter().map(|round| round.cpu_us).collect::<Vec<_>>());
        let quantiles = Latencies::joined(rounds.iter().map(|round| &round.latencies)).quantiles();
        Self { cpu_us: Some(cpu), quantiles, ..self }
    }
}

/// One measured target, or one part of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// `P1`, `F3`, …
    pub(crate) target: &'static str,
    /// What the number is.
    pub(crate) what: String,
    /// What exactly was compared, and how.
    pub(crate) compared: String,
    pub(crate) ours: Side,
    /// Nothing, where the target is a plain number.
    pub(crate) theirs: Option<Side>,
    pub(crate) bound: Bound,
    /// The ratio of the medians, or the median itself.
    pub(crate) measured: f64,
    /// The unit of `measured`.
    pub(crate) unit: &'static str,
    pub(crate) met: Option<bool>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// Ours by theirs, of the medians over all rounds.
    pub(crate) fn ratio(
        target: &'static str,
        what: impl Into<String>,
        compared: impl Into<String>,
        (ours, theirs): (Side, Side),
        bound: Bound,
    ) -> Self {
        let measured = if theirs.median == 0.0 { f64::INFINITY } else { ours.median / theirs.median };
        Self {
            target,
            what: what.into(),
            compared: compared.into(),
            ours,
            theirs: Some(theirs),
            bound,
            measured,
            unit: "×",
            met: bound.is_met(measured),
            notes: Vec::new(),
        }
    }

    /// Ours alone, against a plain number.
    pub(crate) fn value(
        target: &'static str,
        what: impl Into<String>,
        compared: impl Into<String>,
        ours: Side,
        bound: Bound,
    ) -> Self {
        let (measured, unit) = (ours.median, ours.unit);
        let met = bound.is_met(measured);
        let (what, compared) = (what.into(), compared.into());
        Self { target, what, compared, ours, theirs: None, bound, measured, unit, met, notes: Vec::new() }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// A target that could not be measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) target: &'static str,
    pub(crate) reason: String,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// RFC 3339, in UTC.
    pub(crate) started_at: String,
    pub(crate) seconds: u64,
    pub(crate) version: &'static str,
    pub(crate) commit: String,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) machine: Description,
    pub(crate) cores: Cores,
    pub(crate) rows: Vec<Row>,
    pub(crate) failures: Vec<Failure>,
}

/// The median of some times, in seconds.
pub(crate) fn median_of(times: &[Duration]) -> f64 {
    median(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
}

/// A number as a person reads it: three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        magnitude if magnitude >= 1000.0 => grouped(value),
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 0.1 => format!("{value:.2}"),
        magnitude if magnitude >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// `12,345`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A side's value with its unit; long times in milliseconds.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "µs" if value >= 1e6 => format!("{} s", number(value / 1e6)),
        "µs" if value >= 1e3 => format!("{} ms", number(value / 1e3)),
        "×" => format!("{}{unit}", number(value)),
        _ => format!("{} {unit}", number(value)),
    }
}

/// The table that a run prints.
pub(crate) fn table(report: &Report) -> String {
    let mut lines = vec![["", "what", "target", "measured", "", "ours", "theirs", "CPU µs/req"].map(str::to_owned)];
    for row in &report.rows {
        let side = |side: &Side| format!("{} ({})", quantity(side.median, side.unit), side.name);
        let cpu = |side: Option<&Side>| side.and_then(|side| side.cpu_us).map_or_else(|| "–".into(), number);
        let cpus = (cpu(Some(&row.ours)), cpu(row.theirs.as_ref()));
        lines.push([
            row.target.to_owned(),
            row.what.clone(),
            row.bound.text(),
            quantity(row.measured, row.unit),
            verdict(row.met).to_owned(),
            side(&row.ours),
            row.theirs.as_ref().map_or_else(|| "–".to_owned(), side),
            if cpus.0 == "–" { cpus.0 } else { format!("{} / {}", cpus.0, cpus.1) },
        ]);
    }
    let widths: [usize; 8] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    for failure in &report.failures {
        text.push_str(&format!("{}  NOT MEASURED: {}\n", failure.target, failure.reason));
    }
    text
}

pub(crate) fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "NOT MET",
        None => "shown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let check = |value: f64, expected: &str| assert_eq!(number(value), expected);
        check(0.0, "0");
        check(1234567.0, "1,234,567");
        check(123.4, "123");
        check(12.34, "12.3");
        check(1.234, "1.23");
        check(0.01234, "0.0123");
        check(0.000_012, "1.2e-5");
        assert_eq!(quantity(1500.0, "µs"), "1.50 ms");
        assert_eq!(quantity(2.0, "×"), "2.00×");
    }

    #[test]
    fn bounds() {
        let check = |bound: Bound, measured, met, margin| {
            assert_eq!((bound.is_met(measured), bound.margin(measured)), (met, margin), "{bound:?} {measured}");
        };
        check(Bound::AtMost(2.0), 1.0, Some(true), Some(2.0));
        check(Bound::AtMost(2.0), 4.0, Some(false), Some(0.5));
        check(Bound::AtLeast(0.5), 0.5, Some(true), Some(1.0));
        check(Bound::Shown, 0.5, None, None);
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let sides = (Side::new("ours", "µs", vec![2.0, 9.0, 4.0]), Side::new("theirs", "µs", vec![2.0, 1.0, 2.0]));
        let row = Row::ratio("F1", "a call", "this with that", sides, Bound::AtMost(2.5));
        assert_eq!((row.measured, row.met), (2.0, Some(true)));
    }
}
