//! The machine whose memory moves: a make-believe guest of this process, or a QEMU.
//!
//! | module    | contents                                             |
//! |-----------|------------------------------------------------------|
//! | `guest`   | the make-believe guest                               |
//! | `dirtier` | the thread that writes the make-believe guest's memory |
//! | `qmp`     | QEMU's monitor                                       |
//! | `memory`  | the files with the RAM of a QEMU                     |
//! | `process` | the memory map and descriptors of a QEMU              |
//! | `qemu`    | the steps of a migration of a QEMU                   |

pub mod dirtier;
pub mod guest;
pub mod memory;
pub mod process;
pub mod qemu;
pub mod qmp;

use crate::failure::Failure;

/// The machine at the source.
///
/// Its guest runs until [`stop`](Self::stop), and again after [`resume`](Self::resume), which every
/// failure before `Go` calls.
pub trait SourceMachine: Send {
    /// Stops the guest. Afterwards only devices write the memory.
    fn stop(&mut self) -> Result<(), Failure>;

    /// Saves the state of the devices of the stopped guest. Afterwards nothing writes the memory.
    fn save(&mut self) -> Result<Vec<u8>, Failure>;

    /// Lets the guest run on here.
    fn resume(&mut self) -> Result<(), Failure>;

    /// Slows the guest down: `percent` of its time it sleeps. Returns `false` if the machine has no
    /// such means.
    fn throttle(&mut self, percent: u8) -> Result<bool, Failure>;
}

/// The machine at the destination, without a running guest.
pub trait DestinationMachine: Send {
    /// Loads the state of the devices, with the memory complete.
    fn load(&mut self, state: &[u8]) -> Result<(), Failure>;

    /// Lets the guest run here.
    fn start(&mut self) -> Result<(), Failure>;
}
