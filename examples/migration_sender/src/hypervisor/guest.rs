//! The make-believe guest: its memory, its writes, its device state.

use std::sync::Arc;

use super::{
    SourceMachine,
    dirtier::{Dirtier, DirtierConfig},
};
use crate::{
    bitmap::DirtyBitmap,
    cli::SourceArgs,
    failure::{Code, Failure},
    memory::{GuestMemory, mix},
    report::mib,
    source::{Guest, survey::Watch},
    wire::PAGE,
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
        Some(set) if set > memory.len() => Err(Failure::new(
            Code::Usage,
            format!("--dirty-working-set is larger than the memory of {}", mib(memory.len())),
        )),
        _ => Ok(memory),
    }
}

/// The make-believe guest for the arguments. It runs from here on.
pub fn start(args: &SourceArgs, memory: GuestMemory) -> Result<Guest, Failure> {
    let memory = Arc::new(memory);
    let bitmap =
        Arc::new(DirtyBitmap::all_dirty(memory.layout().bytes().div_ceil(PAGE as u64) as usize));
    let config = DirtierConfig {
        bytes_per_second: args.dirty_rate,
        working_set: args.dirty_working_set.unwrap_or(WORKING_SET) as usize,
        seed: args.seed,
    };
    let dirtier = Dirtier::start(config, Arc::clone(&memory), Arc::clone(&bitmap))
        .map_err(|e| Failure::io("starting the dirtier", &e))?;
    let machine = MakeBelieve {
        dirtier: Some(dirtier),
        device_state: (0..args.device_state).map(|at| mix(args.seed ^ at) as u8).collect(),
    };
    Ok(Guest { memory, bitmap, machine: Box::new(machine), watch: Watch::Marks, is_qemu: false })
}

/// The machine of the make-believe guest, which ends with its process.
#[derive(Debug)]
struct MakeBelieve {
    dirtier: Option<Dirtier>,
    device_state: Vec<u8>,
}

impl SourceMachine for MakeBelieve {
    fn stop(&mut self) -> Result<(), Failure> {
        self.dirtier.take().map(Dirtier::stop);
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<u8>, Failure> {
        Ok(self.device_state.clone())
    }

    fn resume(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn throttle(&mut self, _: u8) -> Result<bool, Failure> {
        Ok(false)
    }
}
