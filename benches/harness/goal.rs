//! The goal of a row.

use std::fmt;

use serde::Serialize;

use super::spread::Spread;

/// The bound of a goal.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AtMost {
    /// A multiple of the reference row.
    Times(f64),
    /// An excess over the reference row.
    More(f64),
    /// An absolute value.
    Value(f64),
}

/// A row's goal, measured against a second row of its case.
#[derive(Debug, Serialize)]
pub(super) struct Goal {
    pub(super) row: String,
    pub(super) against: String,
    /// A row to measure against instead, if that row costs less.
    #[serde(skip)]
    pub(super) or: Option<String>,
    pub(super) at_most: AtMost,
    /// The result, in the terms of the bound.
    pub(super) reached: Option<Spread>,
}

impl Goal {
    /// Compares the samples of the two rows; either may be missing.
    pub(super) fn judge(&mut self, row: Option<&[f64]>, against: Option<&[f64]>) {
        let Some(row) = row else { return };
        let against = against.unwrap_or_default();
        self.reached = match self.at_most {
            AtMost::Times(_) => Spread::of_ratios(row, against),
            AtMost::More(_) => {
                Spread::of(row.iter().zip(against).map(|(row, against)| row - against))
            }
            AtMost::Value(_) => Spread::of(row.iter().copied()),
        };
    }

    fn bound(&self) -> f64 {
        match self.at_most {
            AtMost::Times(bound) | AtMost::More(bound) | AtMost::Value(bound) => bound,
        }
    }

    /// Returns `true` if the median reached the goal; `None` without a measurement.
    pub(super) fn is_met(&self) -> Option<bool> {
        self.reached.map(|reached| reached.median <= self.bound())
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, against, at_most, reached, .. } = self;
        match reached {
            Some(reached) => write!(f, "{row}: {reached}")?,
            None => write!(f, "{row}: not measured")?,
        }
        match at_most {
            AtMost::Times(bound) => write!(f, ", at most {bound} times {against}"),
            AtMost::More(bound) => write!(f, ", at most {bound} more than {against}"),
            AtMost::Value(bound) => write!(f, ", at most {bound}"),
        }
    }
}
