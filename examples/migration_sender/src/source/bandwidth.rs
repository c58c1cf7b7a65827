//! The speed of the network, estimated from the rounds so far.

use std::time::Duration;

/// The destination's rate of applying pages, in bytes per second.
#[derive(Debug, Default)]
pub struct Bandwidth {
    /// From the last long round.
    told: Option<f64>,
    /// The best of the shorter rounds.
    hinted: Option<f64>,
}

impl Bandwidth {
    /// A round with fewer bytes mostly measures the round trip.
    const TELLING: u64 = 8 << 20;
    /// A round with fewer bytes is ignored.
    const HINTING: u64 = 64 << 10;
    /// The initial assumption: 1 Gbit/s.
    const ASSUMED: f64 = 125e6;

    pub fn measured(&mut self, bytes: u64, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        if bytes >= Self::TELLING {
            self.told = Some(rate);
        } else if bytes >= Self::HINTING {
            self.hinted = Some(self.hinted.unwrap_or(0.0).max(rate));
        }
    }

    pub fn time_for(&self, bytes: u64) -> Duration {
        let rate = self.told.or(self.hinted).unwrap_or(Self::ASSUMED);
        Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rounds_outweigh_short_rounds() {
        let second = Duration::from_secs(1);
        let mut bandwidth = Bandwidth::default();
        bandwidth.measured(100, second);
        assert_eq!(bandwidth.time_for(125_000_000), second);
        bandwidth.measured(1 << 20, second);
        bandwidth.measured(1 << 19, second);
        assert_eq!(bandwidth.time_for(1 << 20), second);
        bandwidth.measured(1 << 30, second);
        bandwidth.measured(1 << 20, second);
        bandwidth.measured(1 << 29, second);
        assert_eq!(bandwidth.time_for(1 << 29), second);
        assert_eq!(bandwidth.time_for(0), Duration::ZERO);
    }
}
