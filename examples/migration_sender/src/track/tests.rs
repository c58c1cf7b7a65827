//! The trackers against a process that writes without pause.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    process::{Child, Command, Stdio},
    thread,
};

use memmap2::MmapOptions;

use super::*;
use crate::{hypervisor::process::Process, memory::mix, wire::PAGE};

const PAGES: usize = 4096;
const SIZE: u64 = (PAGES * PAGE) as u64;
/// The last page has words of the two processes: a command, its answer, the number of writes.
const COMMAND: u64 = SIZE - PAGE as u64;
const ANSWER: u64 = COMMAND + 8;
const WRITES: u64 = COMMAND + 16;
const STOP: u64 = 1;
const END: u64 = 2;

/// A process with shared memory that it writes all the time.
struct Writer {
    child: Child,
    memory: File,
    ram: Arc<[GuestRam]>,
}

impl Writer {
    fn start(has_userfaultfd: bool) -> Self {
        // SAFETY: memfd_create(2) reads a name that ends with zero.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: the kernel has just made this descriptor, and this is its only owner.
        let memory = unsafe { File::from_raw_fd(fd) };
        memory.set_len(SIZE).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "track::tests::the_writer", "--ignored", "--nocapture"])
            .env("HAS_USERFAULTFD", has_userfaultfd.to_string())
            .stdin(memory.as_fd().try_clone_to_owned().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address: u64 = lines
            .map_while(Result::ok)
            .find_map(|line| line.rsplit_once("at ")?.1.parse().ok())
            .expect("the writer tells its address");
        let ram = GuestRam {
            id: "m0".into(),
            size: SIZE,
            file: memory.try_clone().unwrap(),
            page_size: PAGE as u64,
            addresses: address..address + SIZE,
            process: Arc::new(Process::open(child.id() as i32).unwrap()),
        };
        Self { child, memory, ram: Arc::new([ram]) }
    }

    fn word(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// Waits until `writes` more writes are done.
    fn wait(&self, writes: u64) {
        let start = self.word(WRITES);
        while self.word(WRITES) < start + writes {
            thread::yield_now();
        }
    }

    fn stop(&self) {
        self.memory.write_all_at(&STOP.to_ne_bytes(), COMMAND).unwrap();
        while self.word(ANSWER) != STOP {
            thread::yield_now();
        }
    }

    fn copy(&self, range: Range<u64>, copy: &mut [u8]) {
        let place = &mut copy[range.start as usize..range.end as usize];
        self.memory.read_exact_at(place, range.start).unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.memory.write_all_at(&END.to_ne_bytes(), COMMAND);
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the other process of the other tests"]
fn the_writer() {
    let Ok(has_userfaultfd) = env::var("HAS_USERFAULTFD") else { return };
    if has_userfaultfd == "true" {
        // As `preload/lib.rs` does.
        // SAFETY: userfaultfd(2) takes flags; the descriptor stays open until the process ends.
        assert!(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) } >= 0);
    }
    let memory = File::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    // SAFETY: the other process changes the page of commands only, by pwrite(2). It is read by
    // pread(2) below, not here.
    let mut map = unsafe { MmapOptions::new().len(SIZE as usize).map_mut(&memory) }.unwrap();
    println!("at {}", map.as_ptr() as u64);
    let word = |offset| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, offset).unwrap();
        u64::from_ne_bytes(bytes)
    };
    let mut noise = File::open("/dev/urandom").unwrap();
    let (mut random, mut writes) = (1, 0_u64);
    while word(COMMAND) == 0 {
        for _ in 0..64 {
            random = mix(random);
            let at = random as usize % (PAGES - 1) * PAGE;
            match random >> 56 {
                // The kernel writes, as in a read of a device.
                0 => noise.read_exact(&mut map[at + 100..at + 200]).unwrap(),
                // The balloon.
                1 => {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    let (fd, at) = (memory.as_raw_fd(), at as i64);
                    // SAFETY: fallocate(2) takes numbers; a hole reads as zeros.
                    assert_eq!(unsafe { libc::fallocate(fd, mode, at, PAGE as i64) }, 0);
                }
                _ => map[at..at + 8].copy_from_slice(&random.to_ne_bytes()),
            }
            writes += 1;
        }
        memory.write_all_at(&writes.to_ne_bytes(), WRITES).unwrap();
    }
    memory.write_all_at(&STOP.to_ne_bytes(), ANSWER).unwrap();
    while word(COMMAND) != END {
        thread::yield_now();
    }
}

/// Brings a copy up to date.
fn catch_up(writer: &Writer, tracker: &mut dyn Tracker, copy: &mut [u8]) -> Changes {
    let changes = tracker.changes().unwrap().remove(0);
    for range in changes.written.iter().cloned() {
        writer.copy(range, copy);
    }
    for range in &changes.holes {
        copy[range.start as usize..range.end as usize].fill(0);
    }
    let mut all = [&changes.written[..], &changes.holes].concat();
    all.sort_unstable_by_key(|range| range.start);
    assert_eq!(all.windows(2).find(|pair| pair[0].end > pair[1].start), None, "told twice");
    changes
}

/// The pages that differ from a copy of the stopped writer's memory.
fn differences(writer: &Writer, copy: &[u8]) -> usize {
    let mut memory = vec![0; SIZE as usize];
    writer.copy(0..SIZE, &mut memory);
    // All but the page of commands.
    let pages = copy.chunks(PAGE).zip(memory.chunks(PAGE)).take(PAGES - 1);
    pages.filter(|(one, other)| one != other).count()
}

/// Follows a writer for some rounds, then compares all of the memory.
fn follow(writer: &Writer, tracker: &mut dyn Tracker) {
    let mut copy = vec![0; SIZE as usize];
    writer.wait(1000);
    let first = catch_up(writer, tracker, &mut copy);
    let len =
        |ranges: &[Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    assert_eq!(len(&first.written) + len(&first.holes), SIZE, "the first set is everything");
    let mut told = 0;
    for _ in 0..20 {
        writer.wait(1000);
        told += catch_up(writer, tracker, &mut copy).written.len();
    }
    assert!(told > 0);
    writer.stop();
    catch_up(writer, tracker, &mut copy);
    assert_eq!(differences(writer, &copy), 0, "the tracker has missed pages");
}

#[test]
fn write_protection_misses_no_page() {
    let writer = Writer::start(true);
    let mut tracker = match Uffd::new(Arc::clone(&writer.ram)) {
        Ok(tracker) => tracker,
        Err(why) => {
            println!("SKIPPED track::write_protection_misses_no_page: {why}");
            return;
        }
    };
    assert!(tracker.is_exact());
    follow(&writer, &mut tracker);
    assert_eq!(tracker.changes().unwrap()[0].written, [], "the writer stands still");
    let mut copy = vec![0; SIZE as usize];
    // As a killed sender, which leaves all pages protected.
    std::mem::forget(tracker);

    let mut tracker = Uffd::new(Arc::clone(&writer.ram)).unwrap();
    catch_up(&writer, &mut tracker, &mut copy);
    assert_eq!(differences(&writer, &copy), 0, "the first set after a killed sender");
    assert_eq!(tracker.changes().unwrap()[0].written, []);
}

#[test]
fn soft_dirty_bits_miss_no_page() {
    let writer = Writer::start(false);
    let mut tracker = match SoftDirty::new(Arc::clone(&writer.ram)) {
        Ok(tracker) => tracker,
        Err(why) => {
            println!("SKIPPED track::soft_dirty_bits_miss_no_page: {why}");
            return;
        }
    };
    assert!(!tracker.is_exact());
    follow(&writer, &mut tracker);
}

#[test]
fn a_set_taken_after_the_copy_misses_pages() {
    let writer = Writer::start(true);
    let Ok(mut tracker) = Uffd::new(Arc::clone(&writer.ram)) else { return };
    let mut copy = vec![0; SIZE as usize];
    // The wrong order, as a check of the comparison.
    writer.copy(0..SIZE, &mut copy);
    writer.wait(1000);
    tracker.changes().unwrap();
    writer.stop();
    catch_up(&writer, &mut tracker, &mut copy);
    assert_ne!(differences(&writer, &copy), 0);
}

#[test]
fn ranges_are_taken_out_of_ranges() {
    let from = [0..10, 20..30, 40..50];
    assert_eq!(without(&from, &[]), from);
    assert_eq!(without(&from, &[0..5, 5..100]), []);
    assert_eq!(without(&from, &[2..3, 9..21, 29..45]), [0..2, 3..9, 21..29, 45..50]);
    assert_eq!(without(&from, &[10..20, 50..60]), from);
}

#[test]
fn a_choice_tells_its_reasons() {
    let writer = Writer::start(false);
    let chosen = |method, untracked: &[String]| choose(method, &writer.ram, untracked);
    let refusal = chosen(Method::Uffd, &[]).unwrap_err().message;
    assert!(refusal.contains("LD_PRELOAD=libpinbuf_uffd.so"), "{refusal}");
    let direct = ["disk0 (direct I/O)".to_owned()];
    let refusal = chosen(Method::SoftDirty, &direct).unwrap_err().message;
    assert!(refusal.contains("disk0 (direct I/O)"), "{refusal}");
    let choice = chosen(Method::Auto, &direct).unwrap();
    assert!(choice.method == Method::Digest && choice.tracker.is_none());
    assert!(choice.reason.contains("disk0"), "{}", choice.reason);
    let choice = chosen(Method::Auto, &[]).unwrap();
    assert!(choice.method != Method::Uffd && choice.reason.contains("no uffd:"), "{choice:?}");
    assert_eq!(chosen(Method::Digest, &[]).unwrap().reason, "as asked");
}
