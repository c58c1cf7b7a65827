//! The median of samples, and their spread.

use std::fmt;

use serde::Serialize;

/// Median and quartiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Spread {
    /// `None` without samples.
    pub(super) fn of(samples: impl Iterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.collect();
        samples.sort_unstable_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        let quartile = |n: usize| (samples[last * n / 4] + samples[(last * n).div_ceil(4)]) / 2.0;
        Some(Self { low: quartile(1), median: quartile(2), high: quartile(3) })
    }

    /// The spread of the ratios within each round; there is no ratio to 0.
    pub(super) fn of_ratios(samples: &[f64], floor: &[f64]) -> Option<Self> {
        let pairs = samples.iter().zip(floor).filter(|(_, floor)| **floor > 0.0);
        Self::of(pairs.map(|(sample, floor)| sample / floor))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low, median, high } = self;
        let text = match (short(*low), short(*high)) {
            (low, high) if low == high => short(*median),
            (low, high) => format!("{} [{low}-{high}]", short(*median)),
        };
        f.pad(&text)
    }
}

/// Three digits.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
