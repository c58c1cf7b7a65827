//! Forked children: their view of the library, and no harm to the parent.

#![cfg(target_os = "linux")]

use std::{
    fs,
    future::Future,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    panic::{self, AssertUnwindSafe},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use pinbuf::{
    AllocError, Fate, Policy, Pool, SendError, Sender, WaitError,
    pool::{Backing, Pages},
    reaper::{forbid_thread, serve, stats, wait_idle},
    sender::{Interest, SenderStats},
};

use crate::common::{
    self, STALLED, assert_all_free, assert_arrived, assert_same, census, filled, pair, pair_at,
    pattern, pool,
    process::{alone, smaps_kib, thread_count},
    reader,
    reserve::Reserve,
    soon, test_of, within,
};

const LEN: usize = 64 << 10;

/// Forks. `None` is the child, which has to [`leave`] and is killed if it hangs.
fn fork() -> Option<libc::pid_t> {
    // SAFETY: fork(2). These tests are about the child's rights: beyond the library it only
    // allocates, as glibc and musl allow, and exits by _exit(2).
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: alarm(2) takes no pointers.
            unsafe { libc::alarm(60) };
            None
        }
        child => Some(child),
    }
}

/// Runs the child's part and ends the child.
fn leave(body: impl FnOnce()) -> ! {
    let done = panic::catch_unwind(AssertUnwindSafe(body)).is_ok();
    // SAFETY: _exit(2) ends the process.
    unsafe { libc::_exit(i32::from(!done)) }
}

fn assert_left_well(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(!libc::WIFSIGNALED(status), "killed by signal {}", libc::WTERMSIG(status));
    assert_eq!(libc::WEXITSTATUS(status), 0, "the child's part failed, see its output");
}

#[test]
fn a_child_that_drops_everything_harms_no_parent() {
    alone(|| {
        let pool =
            Pool::builder().class(LEN, 6).class(4096, 1).zero_on_recycle(true).build().unwrap();
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let mut tickets = Vec::new();
        for seed in 0..4 {
            let buf = filled(pool.try_alloc(LEN).unwrap(), LEN, seed);
            tickets.push(sender.send(buf).unwrap());
        }
        let owned = filled(pool.try_alloc(LEN).unwrap(), LEN, 4);
        let shared = filled(pool.try_alloc(LEN).unwrap(), LEN, 5).freeze();
        let _small = pool.try_alloc(1).unwrap();
        {
            let mut waiting = Box::pin(pool.alloc_async(1));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            // The reaper drives the sender now. A child could not close a sender in the hands of a
            // thread of its parent.
            thread::sleep(Duration::from_millis(50));

            let Some(child) = fork() else {
                leave(|| {
                    let again = waiting.as_mut().poll(&mut cx);
                    assert!(matches!(again, Poll::Ready(Err(AllocError::Forked))));
                    drop(waiting);
                    assert_eq!(pool.try_alloc(LEN).unwrap_err(), AllocError::Forked);
                    assert_eq!(pool.alloc(LEN).unwrap_err(), AllocError::Forked);
                    let timed = pool.alloc_timeout(1, Duration::from_secs(1));
                    assert_eq!(timed.unwrap_err(), AllocError::Forked);
                    drop(pool.stats());
                    drop(pool.audit());

                    let refused = sender.try_send(shared.clone());
                    assert!(matches!(refused, Err(SendError::Forked(_))));
                    let refused = sender.send(owned);
                    assert!(matches!(refused, Err(SendError::Forked(_))));
                    drop(refused);
                    let refused = sender.send_vectored(&mut vec![shared.into()]);
                    assert!(matches!(refused, Err(SendError::Forked(()))));
                    assert!(sender.reap().is_err());
                    assert!(sender.try_write(b"?").is_err() && sender.flush().is_err());
                    assert!(sender.event_fd().is_err());
                    assert!(sender.poll_fate(&mut cx, tickets[0]).is_ready());
                    let forked = Poll::Ready(Err(WaitError::Forked));
                    assert_eq!(sender.poll_ready(&mut cx), forked);
                    assert_eq!(sender.poll_drain(&mut cx), forked);
                    assert!(sender.poll_flush(&mut cx).is_ready());
                    assert!(sender.poll_close(&mut cx).is_ready());
                    assert!(matches!(pool.waiter(1), Err(AllocError::Forked)));
                    assert_eq!(sender.wait(tickets[0], None), Err(WaitError::Forked));
                    assert_eq!(sender.drain(None), Err(WaitError::Forked));
                    assert_eq!(sender.interest(), Interest::default());
                    assert_eq!(sender.stats(), SenderStats::default());
                    assert_eq!(sender.fate(tickets[0]), Err(WaitError::Forked));
                    assert!(sender.connection_error().is_none());
                    assert!(sender.next_returned().is_none() && sender.next_event().is_none());
                    let mut sender = sender.into_parts().unwrap_err();
                    assert!(sender.reap().is_err());
                    let fd = sender.as_fd().as_raw_fd();
                    let report = sender.close(soon());
                    assert!(!report.drained && !report.aborted && report.error.is_some());
                    // SAFETY: fcntl(2), F_GETFD, takes no pointer.
                    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
                    assert_eq!(flags, -1, "closed, in the child");
                })
            };
            assert_left_well(child);
            assert!(waiting.as_mut().poll(&mut cx).is_pending(), "the future stays pending");
        }

        assert_eq!(census(&pool), [0, 3, 4, 0]);
        assert_same(&owned, &pattern(LEN, 4));
        assert_same(&shared, &pattern(LEN, 5));
        let peer = reader(far, Duration::ZERO);
        tickets.push(sender.send(owned).unwrap());
        tickets.push(sender.send(shared).unwrap());
        for ticket in tickets {
            let fate = sender.wait(ticket, soon()).unwrap();
            assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
        }
        assert!(
            sender.capabilities().supported,
            "no notification was stolen: {:?}",
            sender.capabilities()
        );
        assert!(sender.close(soon()).drained);
        let want: Vec<u8> = (0..6).flat_map(|seed| pattern(LEN, seed).to_vec()).collect();
        assert_same(&peer.join().unwrap(), &want);
    });
}

/// In a child the pool's addresses are free, and soon other memory may lie there.
#[test]
fn a_child_that_drops_a_pool_unmaps_no_memory() {
    alone(|| {
        for order in
            ["pool, fork, buffer", "buffer, fork, pool", "fork, pool, buffer", "fork, buffer, pool"]
        {
            let mut pool = Some(pool(LEN, 1));
            let mut buf = Some(filled(pool.as_ref().unwrap().try_alloc(1).unwrap(), LEN, 1));
            let place = buf.as_ref().unwrap().as_ptr().cast_mut();
            if order.starts_with("pool") {
                pool = None;
            }
            if order.starts_with("buffer") {
                buf = None;
            }
            let Some(child) = fork() else {
                leave(|| {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                    let access = libc::PROT_READ | libc::PROT_WRITE;
                    // SAFETY: mmap(2): MAP_FIXED_NOREPLACE replaces no mapping.
                    let map = unsafe { libc::mmap(place.cast(), LEN, access, flags, -1, 0) };
                    assert_eq!(map, place.cast(), "the pool is not mapped here");
                    if order.ends_with("buffer") {
                        drop((pool, buf));
                    } else {
                        drop((buf, pool));
                    }
                    // SAFETY: the memory was mapped above.
                    unsafe { place.write_volatile(1) };
                })
            };
            assert_left_well(child);
            buf.iter().for_each(|buf| assert_same(buf, &pattern(LEN, 1)));
            drop(buf);
            pool.iter().for_each(assert_all_free);
        }
    });
}

#[test]
fn a_child_leaves_unread_notifications_to_its_parent() {
    alone(|| {
        let pool = pool(LEN, 4);
        let (near, mut far) = pair();
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let ticket = sender.send(filled(pool.try_alloc(1).unwrap(), LEN, 1)).unwrap();
        let mut got = vec![0; LEN];
        far.read_exact(&mut got).unwrap();
        common::eventually("the notification is on the error queue", || common::has_error(&sender));
        for way in 0..3 {
            let Some(child) = fork() else {
                leave(move || match way {
                    0 => drop(sender.reap()),
                    1 => drop(sender),
                    _ => drop(Some(sender.abort())),
                })
            };
            assert_left_well(child);
        }
        assert!(sender.fate(ticket).unwrap().is_none());
        assert_eq!(sender.reap().unwrap().messages, 1);
        assert!(sender.fate(ticket).unwrap().is_some());
        // The connection is unchanged in both directions.
        let ticket = sender.send(filled(pool.try_alloc(1).unwrap(), LEN, 2)).unwrap();
        far.read_exact(&mut got).unwrap();
        assert_same(&got, &pattern(LEN, 2));
        assert!(sender.wait(ticket, soon()).unwrap().is_released());
        assert!(sender.close(soon()).drained);
        assert_all_free(&pool);
    });
}

#[test]
fn the_halves_of_a_sender_only_close_in_a_child() {
    alone(|| {
        let pool = pool(LEN, 4);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let (mut sending, mut reaping) = sender.split();
        let ticket = sending.send(filled(pool.try_alloc(1).unwrap(), LEN, 1)).unwrap();
        let Some(child) = fork() else {
            leave(move || {
                let fd = sending.as_fd().as_raw_fd();
                assert!(sending.reap().is_err());
                assert_eq!(reaping.wait(ticket, None), Err(WaitError::Forked));
                drop(sending);
                drop(reaping);
                // SAFETY: fcntl(2), F_GETFD, takes no pointer.
                assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, -1);
            })
        };
        assert_left_well(child);
        let peer = reader(far, Duration::ZERO);
        sending.send(filled(pool.try_alloc(1).unwrap(), LEN, 2)).unwrap();
        assert!(reaping.wait(ticket, soon()).unwrap().is_released());
        drop((sending, reaping));
        assert_same(&peer.join().unwrap(), &[pattern(LEN, 1), pattern(LEN, 2)].concat());
        common::eventually("all sends are released", || pool.stats().free() == 4);
    });
}

#[test]
fn a_child_can_use_the_library_itself() {
    alone(|| {
        // The parent's reaper runs and has a sender.
        let pool = pool(LEN, 4);
        let (near, far) = pair_at("127.0.0.1:0", STALLED);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        (0..4).for_each(|_| {
            let buf = filled(pool.try_alloc(1).unwrap(), LEN, 1);
            sender.send(buf).map(drop).unwrap();
        });
        drop(sender);
        let owned = stats().owned;
        assert!(owned > 0);

        let Some(child) = fork() else {
            leave(|| {
                assert_eq!(stats().owned, 0);
                assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Forked);
                let pool = Pool::new(LEN, 4).unwrap();
                let (near, far) = pair();
                let peer = reader(far, Duration::from_millis(20));
                let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
                (0..20).for_each(|seed| {
                    sender.send(filled(pool.alloc(1).unwrap(), LEN, seed)).map(drop).unwrap();
                });
                assert!(sender.stats().zero_copy_calls >= 20);
                drop(sender);
                assert!(wait_idle(within(60_000)));
                assert_eq!(peer.join().unwrap().len(), 20 * LEN);
                assert_all_free(&pool);
            })
        };
        assert_left_well(child);
        assert_same(&reader(far, Duration::ZERO).join().unwrap(), &pattern(LEN, 1).repeat(4));
        common::eventually("the reaper has no sender left", || pool.stats().free() == 4);
    });
}

/// Other threads are in the middle of calls at the fork: they wait for slots and drive the sender
/// with the only slot.
#[test]
fn a_child_never_waits_for_an_orphaned_lock() {
    alone(|| {
        let pool = pool(LEN, 2);
        let (near, _far) = pair_at("127.0.0.1:0", STALLED);
        // With a time limit a send that has to wait asks to be watched first, under the lock.
        let hour = Duration::from_secs(3600);
        let builder = Sender::builder().policy(Policy::Require).max_hold(hour);
        let mut sender = builder.adopt(near).unwrap();
        sender.send(filled(pool.try_alloc(1).unwrap(), LEN, 1)).unwrap();
        let over = AtomicBool::new(false);
        let sender = thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(pool.alloc_timeout(1, Duration::from_micros(50)));
                    }
                });
            }
            let deadline = Instant::now() + Duration::from_secs(1);
            let mut children = Vec::new();
            for turn in 0.. {
                if Instant::now() > deadline {
                    break;
                }
                let mut cx = Context::from_waker(Waker::noop());
                let mut waiting = Box::pin(pool.alloc_async(1));
                let first = waiting.as_mut().poll(&mut cx);
                let Some(child) = fork() else {
                    leave(|| {
                        drop(first);
                        drop((pool.stats(), pool.audit()));
                        assert_eq!(pool.alloc(1).unwrap_err(), AllocError::Forked);
                        drop(waiting);
                        let _ = (sender.stats(), sender.interest(), sender.capabilities());
                        let _ = (sender.connection_error(), sender.held_for());
                        assert!(matches!(sender.send(&b"!"[..]), Err(SendError::Forked(_))));
                        assert!(matches!(
                            sender.send_vectored(&mut Vec::new()),
                            Err(SendError::Forked(()))
                        ));
                        match turn % 4 {
                            0 => drop(sender.split()),
                            1 => drop(Some(sender.abort())),
                            2 => drop(Some(sender.close(within(0)))),
                            _ => drop(sender),
                        }
                    })
                };
                children.push(child);
            }
            over.store(true, Ordering::Relaxed);
            children.into_iter().for_each(assert_left_well);
            sender
        });
        let _ = sender.abort();
        common::eventually("all sends are released", || pool.stats().free() == 2);
    });
}

/// KiB of huge pages in the mapping of an address.
fn huge_kib(address: *const u8) -> usize {
    smaps_kib("AnonHugePages:", address)
}

/// Returns `true` if an address is mapped in this process.
fn is_mapped(address: *const u8) -> bool {
    let page = address.cast_mut().with_addr(address.addr() & !4095).cast();
    let mut resident = 0;
    // SAFETY: mincore(2) writes a byte for each page, here one; it fails if the page is not mapped.
    unsafe { libc::mincore(page, 1, &raw mut resident) == 0 }
}

/// Children that live on, exit or execute a program, while slots of the same pages are in flight,
/// written and sent.
#[test]
fn children_change_no_sent_byte_on_any_kind_of_pages() {
    alone(|| {
        let name = test_of(&|| ());
        let huge = Pages::HugeTlb { page_bytes: Reserve::PAGE };
        for pages in [Pages::Base, Pages::Thp, huge] {
            // As many as the pool needs, and none to spare.
            let _reserve = match (pages == huge).then(|| Reserve::add(1)).transpose() {
                Ok(reserve) => reserve,
                Err(error) => {
                    common::skip(name, &error);
                    continue;
                }
            };
            let slots = Reserve::PAGE / LEN;
            let builder = Pool::builder().class(LEN, slots).backing(Backing::Require(pages));
            let pool = match builder.build() {
                Ok(pool) => pool,
                Err(error) => {
                    common::skip(name, &format!("{pages}: {error}"));
                    continue;
                }
            };
            let (near, far) = pair_at("127.0.0.1:0", STALLED);
            let mut sender = Sender::builder().policy(Policy::Prefer).adopt(near).unwrap();
            let mut send = |seed| {
                let buf = filled(pool.alloc(LEN).unwrap(), LEN, seed);
                let start = buf.as_ptr();
                sender.send(buf).unwrap();
                start
            };
            let start = send(0);
            let whole = huge_kib(start);
            assert!(pages != Pages::Thp || whole > 0);
            let peer = reader(far, Duration::from_millis(100));
            // More than the slots: each slot is written and sent again.
            let count = 3 * slots;
            let mut children = Vec::new();
            for seed in 1..count {
                if seed % 8 == 1 {
                    let Some(child) = fork() else {
                        leave(|| {
                            assert!(!is_mapped(start));
                            match seed / 8 % 3 {
                                0 => thread::sleep(Duration::from_millis(200)),
                                1 => panic!("{}", Command::new("true").exec()),
                                _ => {}
                            }
                        })
                    };
                    children.push(child);
                }
                send(seed);
            }
            assert_eq!(huge_kib(start), whole, "no huge page was split");
            children.into_iter().for_each(assert_left_well);
            assert!(sender.close(soon()).drained);
            assert_arrived(&peer.join().unwrap(), LEN, count);
            assert_all_free(&pool);
        }
    });
}

#[test]
fn a_child_cannot_use_its_parents_magazines() {
    alone(|| {
        let pool = pool(4096, 256);
        let borrowed = pool.clone();
        let local = borrowed.local(4096).unwrap();
        let bufs: Vec<_> = (0..40).map(|_| pool.try_alloc(1).unwrap()).collect();
        let kept = bufs.into_iter().nth(39).unwrap();
        local.recycle(local.try_alloc().unwrap());
        let Some(child) = fork() else {
            leave(|| {
                assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Forked);
                assert_eq!(local.try_alloc().unwrap_err(), AllocError::Forked);
                let mut none = Vec::new();
                assert_eq!(pool.try_alloc_many(1, 8, &mut none), Err(AllocError::Forked));
                assert!(pool.local(1).is_err());
                drop(kept);
                assert_eq!(pool.try_alloc(1).unwrap_err(), AllocError::Forked);
                assert!(pool.audit().is_clean());
                drop((local, pool));
                // The child's own pools have magazines, recalled and bound again.
                let own = common::pool(64, 64);
                thread::scope(|scope| {
                    scope.spawn(|| drop(own.try_alloc(1).unwrap())).join().unwrap();
                });
                let bufs: Vec<_> = (0..64).map(|_| own.try_alloc(1).unwrap()).collect();
                assert!(own.try_alloc(1).is_err());
                drop(bufs);
                assert_all_free(&own);
            })
        };
        assert_left_well(child);
        assert_eq!(census(&pool), [255, 1, 0, 0]);
        drop((kept, local));
        assert_all_free(&pool);
    });
}

#[test]
fn no_descriptor_survives_an_exec() {
    alone(|| {
        let (near, _far) = pair_at("127.0.0.1:0", STALLED);
        let socket = fs::read_link(format!("/proc/self/fd/{}", near.as_raw_fd())).unwrap();
        let pool = pool(LEN, 1);
        let mut sender = Sender::builder().policy(Policy::Require).adopt(near).unwrap();
        let ticket = sender.send(filled(pool.try_alloc(1).unwrap(), LEN, 1)).unwrap();
        // Starts the reaper.
        let polled = sender.poll_fate(&mut Context::from_waker(Waker::noop()), ticket);
        let links = |listing: &str| -> Vec<String> {
            listing
                .lines()
                .filter_map(|line| line.split_once(" -> "))
                .map(|(_, to)| to.into())
                .collect()
        };
        let list = |pid: &str| {
            let output =
                Command::new("ls").args(["-l", &format!("/proc/{pid}/fd")]).output().unwrap();
            links(&String::from_utf8(output.stdout).unwrap())
        };
        let own = list(&std::process::id().to_string());
        let socket = socket.to_str().unwrap();
        assert!(own.iter().any(|link| link == socket), "{own:?}");
        assert!(polled.is_ready() || own.iter().any(|link| link.contains("eventpoll")), "{own:?}");
        let childs = list("self");
        assert!(childs.iter().any(|link| link.contains("pipe")), "{childs:?}");
        let ours = ["eventpoll", "eventfd", socket];
        assert!(!childs.iter().any(|link| ours.iter().any(|our| link.contains(our))), "{childs:?}");
        let _ = sender.abort();
    });
}

#[test]
fn a_child_inherits_the_prohibition_of_the_thread() {
    alone(|| {
        assert!(forbid_thread());
        let Some(child) = fork() else {
            leave(|| {
                let pool = pool(LEN, 1);
                let (near, far) = pair_at("127.0.0.1:0", STALLED);
                let mut sender = common::zero_copy().adopt(near).unwrap();
                sender.send(filled(pool.alloc(LEN).unwrap(), LEN, 0)).unwrap();
                drop(sender);
                assert_eq!((stats().unserved, serve(), thread_count()), (1, 1, 1));
                drop(far);
                assert!(wait_idle(soon()));
                assert_all_free(&pool);
            })
        };
        assert_left_well(child);
    });
}
