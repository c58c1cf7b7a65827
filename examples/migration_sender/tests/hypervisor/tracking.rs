//! The library for `LD_PRELOAD`, in a hypervisor.

use std::env;

use migration_sender::{
    hypervisor::{SourceMachine, qemu::Qemu},
    track::{Method, choose},
};

use crate::machine::{Launch, MAX_STATE, Machine, MemoryFile, TIMEOUT};

#[test]
fn a_preloaded_hypervisor_is_tracked_and_another_is_not() {
    let file = MemoryFile::new("tracked");
    let arguments = file.arguments("m0", "64M");
    // `cargo test` builds it beside the tests, `cargo test --test hypervisor` does not.
    let library = env::current_exe().unwrap().with_file_name("../examples/libpinbuf_uffd.so");
    if !library.exists() {
        println!("SKIPPED hypervisor::tracking: cargo build -p migration_sender --examples");
        return;
    }
    let library = Some(library.as_path());
    let launch = Launch { name: "tracked", arguments: &arguments, library, ..Launch::default() };
    let Some(machine) = launch.start() else { return };
    let mut source = Qemu::source(&machine.socket, TIMEOUT, MAX_STATE).unwrap();
    let untracked = source.untracked_writers().unwrap();
    let mut choice = match choose(Method::Uffd, source.ram(), &untracked) {
        Ok(choice) => choice,
        Err(failure) => {
            println!("SKIPPED hypervisor::tracking: {failure}");
            return;
        }
    };
    let tracker = choice.tracker.as_mut().unwrap();
    let first = tracker.changes().unwrap().remove(0);
    let len = |set: &[std::ops::Range<u64>]| set.iter().map(|r| r.end - r.start).sum::<u64>();
    assert_eq!(len(&first.written) + len(&first.holes), 64 << 20);
    source.stop().unwrap();
    source.save().unwrap();
    tracker.changes().unwrap();
    assert_eq!(tracker.changes().unwrap()[0].written, [], "the guest stands still");
    source.resume().unwrap();
    drop(machine);

    let Some(machine) = Machine::start("untracked", &arguments) else { return };
    let source = Qemu::source(&machine.socket, TIMEOUT, MAX_STATE).unwrap();
    let refusal = choose(Method::Uffd, source.ram(), &[]).unwrap_err().message;
    assert!(refusal.contains("LD_PRELOAD=libpinbuf_uffd.so"), "{refusal}");
}
