//! A machine whose guest is a thread of the test: its memory is a file, as QEMU's is.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::FromRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use memmap2::MmapRaw;
use migration_sender::{
    failure::{Code, Failure},
    hypervisor::{DestinationMachine, SourceMachine},
    memory::{GuestMemory, Ram, mix},
    sys,
};

pub(crate) const LEN: usize = 24 << 20;
const PAGE: usize = 4096;
/// The pages that the guest writes.
const WORKING_SET: usize = 2048;
pub(crate) const STATE: &[u8] = b"the state of the devices";

/// A file with the memory of a guest.
#[derive(Debug)]
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn new() -> Self {
        // SAFETY: memfd_create(2) reads a string with a final zero byte.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a new descriptor, owned by nothing else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(LEN as u64).unwrap();
        Self(file)
    }

    pub(crate) fn rams(&self) -> [Box<dyn Ram>; 1] {
        [Box::new(Self(self.0.try_clone().unwrap()))]
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut bytes, 0).unwrap();
        bytes
    }
}

impl Ram for Memory {
    fn id(&self) -> &str {
        "m0"
    }

    fn len(&self) -> u64 {
        LEN as u64
    }

    fn file(&self) -> &File {
        &self.0
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let (mut ranges, mut at) = (Vec::new(), 0);
        while let Some(range) = sys::next_data(&self.0, at)? {
            at = range.end;
            ranges.push(range);
        }
        Ok(ranges)
    }
}

/// The steps of both machines, and the step that fails.
#[derive(Clone, Default)]
pub(crate) struct Steps {
    pub(crate) failing: &'static str,
    source_runs: Arc<AtomicBool>,
    destination_runs: Arc<AtomicBool>,
}

impl Steps {
    pub(crate) fn failing(step: &'static str) -> Self {
        Self { failing: step, ..Self::default() }
    }

    pub(crate) fn source_runs(&self) -> bool {
        self.source_runs.load(Ordering::SeqCst)
    }

    pub(crate) fn destination_runs(&self) -> bool {
        self.destination_runs.load(Ordering::SeqCst)
    }

    fn step(&self, name: &str) -> Result<(), Failure> {
        match self.failing.split(' ').any(|failing| failing == name) {
            true => Err(Failure::new(Code::Io, format!("the test lets {name} fail"))),
            false => Ok(()),
        }
    }
}

/// The machine with the running guest.
pub(crate) struct Source {
    steps: Steps,
    /// Locked for each write.
    running: Arc<Mutex<bool>>,
    end: Arc<AtomicBool>,
    guest: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts a guest that writes as fast as it can.
    pub(crate) fn start(memory: &Memory, steps: Steps) -> Self {
        let map = MmapRaw::map_raw(&memory.0).unwrap();
        let (running, end) = (Arc::new(Mutex::new(true)), Arc::new(AtomicBool::new(false)));
        // A third of the memory: the rest stays a hole.
        for page in 0..LEN / PAGE / 3 {
            write(&map, page, page as u64 + 1);
        }
        let guest = {
            let (running, end) = (Arc::clone(&running), Arc::clone(&end));
            thread::spawn(move || {
                let mut random = 1;
                while !end.load(Ordering::Relaxed) {
                    let runs = running.lock().unwrap();
                    for _ in 0..if *runs { 16 } else { 0 } {
                        random = mix(random);
                        write(&map, random as usize % WORKING_SET, random);
                    }
                    drop(runs);
                    thread::yield_now();
                }
            })
        };
        steps.source_runs.store(true, Ordering::SeqCst);
        Self { steps, running, end, guest: Some(guest) }
    }

    fn set(&self, runs: bool) {
        *self.running.lock().unwrap() = runs;
        self.steps.source_runs.store(runs, Ordering::SeqCst);
    }
}

/// Fills a page. A page of the number 0 modulo 16 becomes zero.
fn write(map: &MmapRaw, page: usize, value: u64) {
    for word in (0..PAGE).step_by(8) {
        let place = map.as_mut_ptr().wrapping_add(page * PAGE + word).cast();
        let value = if value.is_multiple_of(16) { 0 } else { value ^ word as u64 };
        // SAFETY: within the mapping and aligned; all accesses of the test are atomic.
        unsafe { AtomicU64::from_ptr(place) }.store(value, Ordering::Relaxed);
    }
}

impl SourceMachine for Source {
    fn stop(&mut self) -> Result<(), Failure> {
        self.steps.step("stop")?;
        self.set(false);
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<u8>, Failure> {
        self.steps.step("save")?;
        Ok(STATE.into())
    }

    fn resume(&mut self) -> Result<(), Failure> {
        self.steps.step("resume")?;
        assert!(!self.steps.destination_runs(), "the guest runs at the destination");
        self.set(true);
        Ok(())
    }

    fn throttle(&mut self, _: u8) -> Result<bool, Failure> {
        Ok(false)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.guest.take().unwrap().join();
    }
}

/// The machine that waits for the guest.
pub(crate) struct Destination(pub(crate) Steps);

impl DestinationMachine for Destination {
    fn load(&mut self, state: &[u8]) -> Result<(), Failure> {
        self.0.step("load")?;
        match state == STATE {
            true => Ok(()),
            false => Err(Failure::new(Code::Io, "the machine refuses the state")),
        }
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.0.step("start")?;
        assert!(!self.0.source_runs(), "the guest runs at the source");
        self.0.destination_runs.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// The second mapping of a machine's memory.
pub(crate) fn mapped(
    memory: &Memory,
    access: migration_sender::hypervisor::memory::Access,
) -> GuestMemory {
    GuestMemory::of_machine(memory.rams(), access).unwrap()
}
