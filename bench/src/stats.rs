//! Medians and quantiles, exact, by sorting.

use std::time::Duration;

use serde::Serialize;

/// The quantiles that a report keeps of a distribution.
const KEPT: [f64; 9] = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

/// The middle of `values`; of an even number the mean of the two middle ones. 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Latencies in nanoseconds, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<u64>);

/// A quantile and its latency in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quantile {
    pub(crate) quantile: f64,
    pub(crate) us: f64,
}

impl Latencies {
    pub(crate) fn new(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        Self(nanoseconds)
    }

    pub(crate) fn of(times: &[Duration]) -> Self {
        Self::new(times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect())
    }

    /// All of several samples.
    pub(crate) fn joined<'a>(samples: impl IntoIterator<Item = &'a Self>) -> Self {
        Self::new(samples.into_iter().flat_map(|sample| sample.0.iter().copied()).collect())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// In microseconds; the smallest latency that is not below this share of all. 0 of nothing.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        let rank = (quantile * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(0.0, |time| *time as f64 / 1000.0)
    }

    pub(crate) fn quantiles(&self) -> Vec<Quantile> {
        // What one sample alone would stand for is no quantile.
        let known = |quantile: &f64| (1.0 - quantile.max(1.0 - quantile)) * self.0.len() as f64 >= 1.0;
        KEPT.into_iter().filter(known).map(|quantile| Quantile { quantile, us: self.at(quantile) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |values: &[f64], expected: f64| assert_eq!(median(values), expected, "{values:?}");
        check(&[], 0.0);
        check(&[3.0], 3.0);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.5);
    }

    #[test]
    fn quantiles() {
        let hundred = Latencies::new((1..=100).rev().map(|us| us * 1000).collect());
        assert_eq!([0.01, 0.5, 0.99, 1.0].map(|quantile| hundred.at(quantile)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(hundred.quantiles().last().map(|last| last.quantile), Some(0.99));
        assert_eq!(Latencies::default().at(0.5), 0.0);
        assert!(Latencies::default().quantiles().is_empty());
    }
}
