//! The search for the guest's memory, and its holes.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    time::Instant,
};

use migration_sender::{
    failure::Failure,
    hypervisor::{
        memory::{Access, GuestRam, find},
        qmp::{Qmp, Version},
    },
};
use serde_json::json;

use crate::machine::{Launch, Machine, MemoryFile, TIMEOUT};

const MIB: u64 = 1 << 20;

fn search(machine: &Machine, access: Access) -> Result<Vec<GuestRam>, Failure> {
    find(&mut Qmp::connect(&machine.socket, TIMEOUT).unwrap(), access)
}

fn version(machine: &Machine) -> Version {
    Qmp::connect(&machine.socket, TIMEOUT).unwrap().version()
}

/// The only memory of a machine, which is stopped after a write by its firmware.
fn only(machine: &Machine) -> GuestRam {
    let mut found = search(machine, Access::Write).unwrap();
    assert_eq!(found.len(), 1);
    let ram = found.remove(0);
    assert_eq!((ram.id.as_str(), ram.size, ram.process.pid()), ("m0", 64 * MIB, machine.pid()));
    assert_eq!(ram.addresses.end - ram.addresses.start, ram.size);
    // The firmware soon copies itself below 1 MiB, and its last line begins with a far jump.
    let (mut byte, started) = ([0], Instant::now());
    while byte != [0xea] {
        assert!(started.elapsed() < TIMEOUT, "this memory is not the guest's");
        ram.file.read_exact_at(&mut byte, 0xffff0).unwrap();
    }
    // From here on the memory is still.
    Qmp::connect(&machine.socket, TIMEOUT).unwrap().execute("stop", json!({})).unwrap();
    ram
}

fn data(ram: &GuestRam) -> u64 {
    let ranges = ram.data_ranges().unwrap();
    assert!(ranges.is_sorted_by(|one, other| one.end < other.start));
    assert!(ranges.iter().all(|range| range.end <= ram.size && range.start < range.end));
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn a_file_is_found_with_its_holes() {
    let file = MemoryFile::new("file");
    let Some(machine) = Machine::start("file", &file.arguments("m0", "64M")) else { return };
    let ram = only(&machine);
    assert_eq!(ram.page_size, 4096);
    let before = data(&ram);
    assert!((4096..16 * MIB).contains(&before), "{before} bytes of data");
    ram.file.write_all_at(&[1], 40 * MIB).unwrap();
    assert_eq!(data(&ram), before + 4096);
    // A hole of the balloon.
    fallocate_hole(&ram.file, 40 * MIB, 4096);
    assert_eq!(data(&ram), before);
}

fn fallocate_hole(file: &File, offset: u64, len: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate(2) takes numbers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    assert_eq!(done, 0);
}

#[test]
fn a_source_cannot_write_to_the_memory() {
    let file = MemoryFile::new("read-only");
    let Some(machine) = Machine::start("read-only", &file.arguments("m0", "64M")) else { return };
    let ram = search(&machine, Access::Read).unwrap().remove(0);
    assert!(ram.file.write_all_at(&[1], 0).is_err());
}

#[test]
fn an_unlinked_file_in_a_folder_is_found() {
    let folder = MemoryFile(std::env::temp_dir());
    let arguments = folder.arguments("m0", "64M");
    std::mem::forget(folder);
    let Some(machine) = Machine::start("folder", &arguments) else { return };
    only(&machine);
}

#[test]
fn an_inherited_memfd_is_found() {
    // SAFETY: memfd_create(2) reads a name that ends with zero.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the kernel has just made this descriptor, and this is its only owner.
    let memory = unsafe { File::from_raw_fd(fd) };
    memory.set_len(64 * MIB).unwrap();
    let inherited = memory.as_fd().try_clone_to_owned().unwrap();
    let path = MemoryFile("/proc/self/fd/0".into());
    let arguments = path.arguments("m0", "64M");
    std::mem::forget(path);
    let stdin = Some(inherited.into());
    let launch = Launch { name: "inherited", arguments: &arguments, stdin, ..Launch::default() };
    let Some(machine) = launch.start() else { return };
    only(&machine);
}

#[test]
fn a_memfd_of_qemu_is_found_or_refused_by_version() {
    let object = "-object memory-backend-memfd,id=m0,size=64M,share=on";
    let arguments = format!("-m 64M -machine pc,memory-backend=m0 {object}");
    let Some(machine) = Machine::start("memfd", &arguments) else { return };
    if version(&machine) < (Version { major: 8, minor: 1 }) {
        only(&machine);
        return;
    }
    let refusal = search(&machine, Access::Read).unwrap_err().message;
    assert!(refusal.contains("memory-backend-memfd") && refusal.contains("share=on"), "{refusal}");
}

#[test]
fn backends_of_one_size_are_told_apart() {
    let files = [MemoryFile::new("one"), MemoryFile::new("two")];
    let more = format!(
        "-m 64M,slots=2,maxmem=256M -machine pc,memory-backend=m0 -device pc-dimm,memdev=m1 \
         -object memory-backend-file,id=m0,size=64M,mem-path={},share=on \
         -object memory-backend-file,id=m1,size=64M,mem-path={},share=on",
        files[0].0.display(),
        files[1].0.display()
    );
    let Some(machine) = Machine::start("same-size", &more) else { return };
    let found = search(&machine, Access::Write).unwrap();
    assert_eq!(found.len(), 2);
    for ram in found {
        let path = &files[usize::from(ram.id == "m1")].0;
        ram.file.write_all_at(ram.id.as_bytes(), 32 * MIB).unwrap();
        let mut bytes = [0; 2];
        File::open(path).unwrap().read_exact_at(&mut bytes, 32 * MIB).unwrap();
        assert_eq!(bytes, ram.id.as_bytes());
    }
}

#[test]
fn a_truncated_file_is_named() {
    let file = MemoryFile::new("truncated");
    let Some(machine) = Machine::start("truncated", &file.arguments("m0", "64M")) else { return };
    let ram = only(&machine);
    ram.file.set_len(MIB).unwrap();
    let error = ram.data_ranges().unwrap_err().to_string();
    assert!(error.contains("memory m0 was truncated"), "{error}");
    let refusal = search(&machine, Access::Read).unwrap_err().message;
    assert!(refusal.contains("memory m0 was truncated"), "{refusal}");
}

#[test]
fn huge_pages_have_holes_too() {
    let free: u64 = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .map_or(0, |text| text.trim().parse().unwrap_or(0));
    if free < 32 {
        println!("SKIPPED hypervisor::huge_pages_have_holes_too: it needs 32 free huge pages");
        return;
    }
    let name = c"guest".as_ptr();
    // SAFETY: memfd_create(2) reads a name that ends with zero.
    let fd = unsafe { libc::memfd_create(name, libc::MFD_CLOEXEC | libc::MFD_HUGETLB) };
    // SAFETY: the kernel has just made this descriptor, and this is its only owner.
    let memory = unsafe { File::from_raw_fd(fd) };
    memory.set_len(64 * MIB).unwrap();
    let path = MemoryFile("/proc/self/fd/0".into());
    let arguments = path.arguments("m0", "64M");
    std::mem::forget(path);
    let inherited = memory.as_fd().try_clone_to_owned().unwrap();
    let stdin = Some(inherited.into());
    let launch = Launch { name: "huge", arguments: &arguments, stdin, ..Launch::default() };
    let Some(machine) = launch.start() else { return };
    let ram = only(&machine);
    assert_eq!(ram.page_size, 2 * MIB);
    let before = data(&ram);
    assert!(before <= 32 * MIB, "{before} bytes of data");
    assert_eq!(data(&ram), before, "a look fills no hole");
    // As the program at a destination does: a page that the hypervisor has never touched.
    // SAFETY: the file is a memfd of this test, and nothing else changes this page.
    let mut map = unsafe { memmap2::MmapOptions::new().len(64 << 20).map_mut(&memory) }.unwrap();
    map[40 << 20 | 77] = 1;
    assert_eq!(data(&ram), before + 2 * MIB);
}

#[test]
fn a_hypervisor_of_another_user_is_refused_with_the_remedy() {
    // SAFETY: geteuid(2) takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED hypervisor::a_hypervisor_of_another_user: it needs root");
        return;
    }
    let file = MemoryFile::new("other-user");
    let Some(machine) = Machine::start("other-user", &file.arguments("m0", "64M")) else { return };
    let mut qmp = Qmp::connect(&machine.socket, TIMEOUT).unwrap();
    // A thread of its own: only this thread changes its user, and ends as that.
    let refusal = std::thread::spawn(move || {
        // SAFETY: setresuid(2) takes numbers; the raw call changes this thread alone.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(done, 0);
        find(&mut qmp, Access::Read).unwrap_err().message
    });
    let refusal = refusal.join().unwrap();
    assert!(refusal.contains("CAP_SYS_PTRACE"), "{refusal}");
}
