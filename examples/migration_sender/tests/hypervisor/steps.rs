//! The steps of a move: refusals before, the way from end to end, the way back.

use std::fs;

use migration_sender::{
    failure::Failure,
    hypervisor::{DestinationMachine, SourceMachine, qemu::Qemu},
};
use serde_json::json;

use crate::machine::{MAX_STATE, Machine, MemoryFile, TIMEOUT};

fn source(machine: &Machine) -> Result<Qemu, Failure> {
    Qemu::source(&machine.socket, TIMEOUT, MAX_STATE)
}

fn destination(machine: &Machine) -> Result<Qemu, Failure> {
    Qemu::destination(&machine.socket, TIMEOUT, MAX_STATE)
}

/// A refused source with these arguments, and the words of the refusal.
fn refused(name: &str, arguments: &str, expected: &[&str]) {
    let Some(machine) = Machine::start(name, arguments) else { return };
    let refusal = source(&machine).unwrap_err().message;
    for words in expected {
        assert!(refusal.contains(words), "{words:?} is not in {refusal:?}");
    }
}

#[test]
fn a_guest_moves_goes_back_and_moves_again() {
    let files = [MemoryFile::new("moves-1"), MemoryFile::new("moves-2")];
    let arguments = |n: usize| files[n].arguments("m0", "64M");
    let Some(first) = Machine::start("moves-source", &arguments(0)) else { return };
    let incoming = format!("{} -incoming defer", arguments(1));
    let Some(second) = Machine::start("moves-destination", &incoming) else { return };
    let mut source = source(&first).unwrap();
    let mut destination = destination(&second).unwrap();
    assert_eq!(source.status().unwrap(), "running");
    assert_eq!(source.qmp().peer_pid().unwrap(), first.pid());
    assert_eq!(source.untracked_writers().unwrap(), [""; 0]);

    // A first try ends at the source, after the device state.
    source.stop().unwrap();
    let state = source.save().unwrap();
    assert!((1000..4 << 20).contains(&state.len()), "{} bytes of devices", state.len());
    source.resume().unwrap();
    assert_eq!(source.status().unwrap(), "running");
    let settings = source.qmp().execute("query-migrate-capabilities", json!({})).unwrap();
    let settings = settings.as_array().unwrap();
    let is_on = |name: &str| settings.iter().any(|c| c["capability"] == name && c["state"] == true);
    assert!(!is_on("x-ignore-shared"), "a later migration of QEMU's own would skip the memory");
    drop(source);

    let mut source = self::source(&first).unwrap();
    source.stop().unwrap();
    let state = source.save().unwrap();
    assert_eq!(source.status().unwrap(), "postmigrate");
    fs::copy(&files[0].0, &files[1].0).unwrap();
    destination.load(&state).unwrap();
    assert_eq!(destination.status().unwrap(), "paused");
    destination.start().unwrap();
    assert_eq!(destination.status().unwrap(), "running");
}

#[test]
fn a_device_state_of_another_machine_is_refused_and_the_source_goes_on() {
    let files = [MemoryFile::new("other-1"), MemoryFile::new("other-2")];
    let Some(first) = Machine::start("other-source", &files[0].arguments("m0", "64M")) else {
        return;
    };
    let incoming = format!("{} -incoming defer -device qemu-xhci", files[1].arguments("m0", "64M"));
    let Some(second) = Machine::start("other-destination", &incoming) else { return };
    let mut source = source(&first).unwrap();
    let mut destination = destination(&second).unwrap();
    source.stop().unwrap();
    let mut state = source.save().unwrap();
    // Of a machine with fewer devices, and cut off.
    state.truncate(state.len() / 2);
    let refusal = destination.load(&state).unwrap_err().message;
    assert!(
        refusal.contains("same machine type") || refusal.contains("has it ended?"),
        "{refusal}"
    );
    source.resume().unwrap();
    assert_eq!(source.status().unwrap(), "running");
}

#[test]
fn a_machine_of_the_wrong_end_is_refused() {
    let file = MemoryFile::new("end");
    let Some(running) = Machine::start("end", &file.arguments("m0", "64M")) else { return };
    let refusal = destination(&running).unwrap_err().message;
    assert!(refusal.contains("-incoming defer"), "{refusal}");
    let incoming = format!("{} -incoming defer", file.arguments("m0", "64M"));
    refused("end-incoming", &incoming, &["is it the destination?"]);
    refused("end-paused", &format!("{} -S", file.arguments("m0", "64M")), &["prelaunch", "cont"]);
}

#[test]
fn memory_that_qemu_sends_itself_is_refused_by_name() {
    refused("memory-none", "-m 64M", &["pc.ram", "memory-backend-file", "share=on"]);
    let object = "-object memory-backend-ram,id=m1,size=64M,share=on";
    let arguments = format!("-m 64M -machine pc,memory-backend=m1 {object}");
    refused("memory-ram", &arguments, &["m1", "memory-backend-ram", "memory-backend-file"]);
}

#[test]
fn capabilities_and_parameters_in_the_way_are_refused_by_name() {
    let file = MemoryFile::new("capabilities");
    let arguments = file.arguments("m0", "64M");
    let Some(machine) = Machine::start("capabilities", &arguments) else { return };
    for name in ["multifd", "postcopy-ram", "return-path", "pause-before-switchover"] {
        let set = |state: bool| {
            let mut qmp =
                migration_sender::hypervisor::qmp::Qmp::connect(&machine.socket, TIMEOUT).unwrap();
            let capability = json!({ "capability": name, "state": state });
            qmp.execute("migrate-set-capabilities", json!({ "capabilities": [capability] }))
                .unwrap();
        };
        set(true);
        let refusal = source(&machine).unwrap_err().message;
        assert!(refusal.contains(name) && refusal.contains("turn it off"), "{refusal}");
        set(false);
    }
    source(&machine).unwrap();
}

#[test]
fn a_guest_without_a_dirty_ring_is_not_throttled() {
    let file = MemoryFile::new("throttle");
    let Some(machine) = Machine::start("throttle", &file.arguments("m0", "64M")) else { return };
    assert!(!source(&machine).unwrap().throttle(50).unwrap());
}

#[test]
fn a_hypervisor_that_dies_is_named() {
    let file = MemoryFile::new("dies");
    let Some(mut machine) = Machine::start("dies", &file.arguments("m0", "64M")) else { return };
    let mut source = source(&machine).unwrap();
    machine.kill();
    let failure = source.stop().unwrap_err().message;
    assert!(failure.contains("has it ended?"), "{failure}");
}

#[test]
fn direct_writers_are_named() {
    let file = MemoryFile::new("direct");
    let disk = std::env::temp_dir().join(format!("pinbuf-hypervisor-{}-disk", std::process::id()));
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let drives = format!(
        "{} -blockdev driver=file,filename={},node-name=disk,cache.direct=on,read-only=on \
         -device virtio-blk-pci,drive=disk",
        file.arguments("m0", "64M"),
        disk.display()
    );
    let Some(machine) = Machine::start("direct", &drives) else { return };
    let writers = source(&machine).unwrap().untracked_writers().unwrap();
    fs::remove_file(disk).unwrap();
    assert_eq!(writers, ["block node disk (direct I/O)"]);
}
