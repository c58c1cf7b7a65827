//! The common state of all sockets of a simulation: time, chance, memory, the user's limits, the
//! network.

use crate::{choices::Choices, memory::Memory, notifications::User};

#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) choices: Choices,
    /// Nanoseconds since the start.
    pub(crate) now: u64,
    pub(crate) memory: Memory,
    pub(crate) user: User,
    pub(crate) weather: Weather,
}

pub(crate) const MICROSECOND: u64 = 1000;
pub(crate) const MILLISECOND: u64 = 1000 * MICROSECOND;
pub(crate) const SECOND: u64 = 1000 * MILLISECOND;
pub(crate) const FOR_EVER: u64 = u64::MAX;

/// The state of the network; chances in a thousand.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Weather {
    pub(crate) loss: usize,
    pub(crate) ack_loss: usize,
    /// A packet waits in a queue below TCP for a while.
    pub(crate) held: usize,
    /// Delivered bytes are copied, as on loopback.
    pub(crate) copied: usize,
    /// A call fails with an unrelated error.
    pub(crate) errors: usize,
    /// A read of the error queue fails or is truncated.
    pub(crate) cut: usize,
}

impl Weather {
    pub(crate) fn new(choices: &mut Choices) -> Self {
        Self {
            loss: choices.pick(&[0, 10, 50, 200, 500]),
            ack_loss: choices.pick(&[0, 50, 500]),
            held: choices.pick(&[0, 0, 20, 200]),
            copied: choices.pick(&[0, 0, 500, 1000]),
            errors: choices.pick(&[0, 0, 5, 50]),
            cut: choices.pick(&[0, 0, 0, 0, 1, 5]),
        }
    }
}
