//! The least that could move the pages: a loop of write(2) for each channel, and one of read(2).

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    slice, thread,
    time::{Duration, Instant},
};

use migration_sender::{
    memory::GuestMemory,
    wire::{CHUNK, MAX_PACKET, PAGE, Run},
};

use crate::harness::thread_cpu;

/// The cost of a run; per gigabyte in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) bytes: u64,
    pub(crate) wall: Duration,
    /// CPU time of the sending threads.
    pub(crate) cpu: Duration,
}

impl Cost {
    pub(crate) fn wall_per_gigabyte(self) -> f64 {
        self.wall.as_secs_f64() * 1e12 / self.bytes as f64
    }

    pub(crate) fn cpu_per_gigabyte(self) -> f64 {
        self.cpu.as_secs_f64() * 1e12 / self.bytes as f64
    }
}

/// The runs for each channel: all nonzero pages, found beforehand.
pub(crate) fn plan(memory: &GuestMemory, channels: usize) -> Vec<Vec<Run>> {
    let mut plan = vec![Vec::<Run>::new(); channels];
    for offset in (0..memory.layout().span()).step_by(PAGE) {
        if memory.is_zero(offset, PAGE) {
            continue;
        }
        let runs = &mut plan[offset / CHUNK % channels];
        match runs.last_mut() {
            Some(run)
                if run.end() == offset && run.len < MAX_PACKET && !offset.is_multiple_of(CHUNK) =>
            {
                run.len += PAGE;
            }
            _ => runs.push(Run { offset, len: PAGE }),
        }
    }
    plan
}

/// Moves the planned runs of `memory` into a memory of the same size.
pub(crate) fn migrate(memory: &GuestMemory, plan: &[Vec<Run>], listener: &TcpListener) -> Cost {
    let target = GuestMemory::zeroed(memory.layout().clone()).unwrap();
    let address = listener.local_addr().unwrap();
    // The destination of the example looks at its flags between two connections.
    listener.set_nonblocking(false).unwrap();
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in plan {
        near.push(TcpStream::connect(address).unwrap());
        far.push(listener.accept().unwrap().0);
    }
    let begun = Instant::now();
    let cpu = thread::scope(|scope| {
        for (stream, runs) in far.into_iter().zip(plan) {
            let target = &target;
            scope.spawn(move || receive(target, runs, stream));
        }
        let threads = near.into_iter().zip(plan);
        let threads: Vec<_> =
            threads.map(|(stream, runs)| scope.spawn(|| send(memory, runs, stream))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let bytes = plan.iter().flatten().map(|run| run.len as u64).sum();
    Cost { bytes, wall: begun.elapsed(), cpu }
}

fn send(memory: &GuestMemory, runs: &[Run], mut stream: TcpStream) -> Duration {
    for run in runs {
        let start = memory.address(run.offset);
        // SAFETY: the run lies within the memory, which has no writers.
        let bytes = unsafe { slice::from_raw_parts(start, run.len) };
        stream.write_all(bytes).unwrap();
    }
    // The other end has all bytes when it closes.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    thread_cpu()
}

fn receive(target: &GuestMemory, runs: &[Run], mut stream: TcpStream) {
    for run in runs {
        let start = target.address(run.offset);
        // SAFETY: the run lies within the target, and no other thread has it.
        let bytes = unsafe { slice::from_raw_parts_mut(start, run.len) };
        stream.read_exact(bytes).unwrap();
    }
}
