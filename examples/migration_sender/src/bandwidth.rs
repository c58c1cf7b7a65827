//! How fast the network is, as far as the rounds so far tell.

use std::time::Duration;

/// How fast the destination applies what is sent, in bytes per second.
#[derive(Debug, Default)]
pub struct Bandwidth {
    /// Of the last round that was long enough to tell.
    told: Option<f64>,
    /// The best of the shorter rounds.
    hinted: Option<f64>,
}

impl Bandwidth {
    /// A round with fewer bytes mostly measures the way there and back.
    const TELLING: u64 = 8 << 20;
    /// A round with fewer bytes says nothing.
    const HINTING: u64 = 64 << 10;
    /// What is assumed of a network that has carried nothing yet: 1 Gbit/s.
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
    fn long_rounds_outweigh_short_ones_and_short_ones_a_guess() {
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
