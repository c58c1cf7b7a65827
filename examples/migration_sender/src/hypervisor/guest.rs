//! The make-believe guest: its memory, its writes, its device state.

use std::sync::Arc;

use crate::{
    cli::SourceArgs,
    failure::{Code, Failure},
    hypervisor::dirtier::DirtierConfig,
    memory::{GuestMemory, mix},
    report::mib,
};

/// The default working set of the guest, in bytes.
const WORKING_SET: u64 = 64 << 20;

/// The guest memory for the arguments.
pub fn memory(args: &SourceArgs) -> Result<GuestMemory, Failure> {
    let memory = match &args.memory_in {
        Some(path) => GuestMemory::from_image(path)
            .map_err(|e| Failure::io(format_args!("--memory-in {}", path.display()), &e))?,
        None => GuestMemory::patterned(args.memory as usize, args.seed).map_err(|e| {
            Failure::io(format_args!("--memory: {} are unavailable", mib(args.memory)), &e)
        })?,
    };
    match args.dirty_working_set {
        Some(set) if set > memory.len() as u64 => Err(Failure::new(
            Code::Usage,
            format!(
                "--dirty-working-set is larger than the memory of {}",
                mib(memory.len() as u64)
            ),
        )),
        _ => Ok(memory),
    }
}

/// The guest's writes for the arguments.
pub fn dirtier(args: &SourceArgs) -> DirtierConfig {
    DirtierConfig {
        bytes_per_second: args.dirty_rate,
        working_set: args.dirty_working_set.unwrap_or(WORKING_SET) as usize,
        seed: args.seed,
    }
}

/// The device state of the stopped guest.
pub fn device_state(args: &SourceArgs) -> Arc<[u8]> {
    (0..args.device_state).map(|at| mix(args.seed ^ at) as u8).collect()
}
