//! A stream and its halves: everything arrives in order, and every buffer comes back.

use std::{
    fs,
    future::poll_fn,
    io::{self, ErrorKind, Write},
    pin::Pin,
    thread,
    time::Duration,
};

use futures_sink::Sink;
use pinbuf::{
    Fate, Payload, Policy, SendError, Sender, WaitError,
    sender::OnRelease,
    tokio::{IntoSocket, Stream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

use crate::{
    LEN,
    common::{
        STALLED, TIGHT, assert_arrived, assert_same, fill, filled,
        namespace::{in_a_namespace, run},
        pair, pattern, pool, raise_loopback, random, reader, reset,
        road::Road,
        seed, set_option, wait_until_all_free, zero_copy,
    },
    one_thread, runtimes, soon, stream, stream_of,
};

const COUNT: usize = 50;

#[test]
fn every_buffer_arrives_and_comes_back() {
    for runtime in runtimes() {
        for builder in [zero_copy(), zero_copy().max_in_flight_sends(2), Sender::builder()] {
            let pool = pool(LEN, 4);
            let sending = pool.clone();
            let peer = runtime.block_on(async move {
                let (mut stream, far) = stream_of(builder, TIGHT);
                let peer = reader(far, Duration::from_millis(5));
                let task = tokio::spawn(async move {
                    for seed in 0..COUNT {
                        let buf = sending.alloc_async(LEN).await.unwrap();
                        let ticket = soon(stream.send(filled(buf, LEN, seed))).await.unwrap();
                        assert_eq!(ticket.sequence(), seed as u64);
                    }
                    soon(stream.close(None)).await
                });
                let report = task.await.unwrap();
                assert!(report.drained, "{report:?}");
                peer
            });
            assert_arrived(&peer.join().unwrap(), LEN, COUNT);
            wait_until_all_free(&pool);
        }
    }
}

#[test]
fn a_release_is_awaited_in_another_task() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let (mut stream, far) = stream(TIGHT);
            let peer = reader(far, Duration::from_millis(5));
            let mut releases = Vec::new();
            for seed in 0..COUNT {
                let ticket = soon(stream.send(pattern(LEN, seed))).await.unwrap();
                releases.push(tokio::spawn(soon(stream.released(ticket))));
            }
            // The fates come even though the stream is gone.
            drop(stream);
            for released in releases {
                let fate = released.await.unwrap().unwrap();
                assert!(matches!(fate, Fate::Released { accepted: LEN, .. }), "{fate:?}");
            }
            let arrived = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
            assert_arrived(&arrived, LEN, COUNT);
        });
    }
}

/// Headers by copy and bodies without keep their order, in both directions at once.
#[test]
fn halves_in_two_tasks_send_and_read_at_once() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let far = listener.accept().await.unwrap().0;
            let ends = [near, far].map(|socket| {
                let (mut read, mut write) =
                    Stream::adopt(zero_copy(), socket).unwrap().into_split();
                let reading = tokio::spawn(async move {
                    let mut arrived = Vec::new();
                    soon(read.read_to_end(&mut arrived)).await.map(|_| arrived)
                });
                let writing = tokio::spawn(async move {
                    for seed in 0..COUNT {
                        soon(write.write_all(&seed.to_le_bytes())).await.unwrap();
                        let mut bufs = vec![pattern(LEN, seed).into(), Payload::from(&b"end"[..])];
                        soon(write.send_vectored(&mut bufs)).await.unwrap();
                        assert!(bufs.is_empty());
                    }
                    soon(write.flush()).await.unwrap();
                    soon(write.shutdown()).await.unwrap();
                    assert_eq!(write.stats().in_flight_calls, 0);
                });
                (reading, writing)
            });
            let mut expected = Vec::new();
            for seed in 0..COUNT {
                expected.extend(seed.to_le_bytes());
                expected.extend(pattern(LEN, seed).iter());
                expected.extend(b"end");
            }
            for (reading, writing) in ends {
                writing.await.unwrap();
                assert_same(&reading.await.unwrap().unwrap(), &expected);
            }
        });
    }
}

#[test]
fn a_sink_sends_payloads_in_order_with_other_sends() {
    one_thread().block_on(async {
        // A second send is refused until the release of the first, and the sink keeps it.
        let (mut stream, far) = stream_of(zero_copy().max_in_flight_sends(1), TIGHT);
        let peer = reader(far, Duration::from_millis(5));
        let mut seed = 0;
        while seed < COUNT {
            soon(poll_fn(|cx| Sink::poll_ready(Pin::new(&mut stream), cx))).await.unwrap();
            Pin::new(&mut stream).start_send(pattern(LEN, seed).into()).unwrap();
            // Without a wait for the sink.
            soon(stream.send(pattern(LEN, seed + 1))).await.unwrap();
            seed += 2;
        }
        soon(poll_fn(|cx| Sink::poll_close(Pin::new(&mut stream), cx))).await.unwrap();
        assert_arrived(&peer.join().unwrap(), LEN, COUNT);
    });
}

/// What comes behind a payload that the sink has kept.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Behind {
    Send,
    SendVectored,
    Write,
    Flush,
    Drain,
    Shutdown,
}

/// The socket has room by the time of the next call, so nothing but the order of the stream holds the call up.
#[test]
fn a_payload_kept_by_the_sink_goes_before_the_next_call() {
    use Behind::*;
    for behind in [Send, SendVectored, Write, Flush, Drain, Shutdown] {
        one_thread().block_on(soon(async {
            let (mut stream, far) = stream_of(zero_copy().max_in_flight_sends(1), STALLED);
            for seed in 0..2 {
                poll_fn(|cx| Sink::poll_ready(Pin::new(&mut stream), cx)).await.unwrap();
                Pin::new(&mut stream).start_send(pattern(LEN, seed).into()).unwrap();
            }
            let accepted = |stream: &Stream| {
                let stats = stream.stats();
                (stats.zero_copy_bytes + stats.copied_bytes) as usize
            };
            assert!(accepted(&stream) <= LEN, "the second is kept");
            let peer = reader(far, Duration::ZERO);
            while accepted(&stream) < LEN || stream.stats().in_flight_calls > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut expected = 2;
            match behind {
                Send => drop(stream.send(pattern(LEN, 2)).await.unwrap()),
                SendVectored => {
                    let mut bufs = vec![pattern(LEN, 2).into()];
                    stream.send_vectored(&mut bufs).await.unwrap();
                }
                Write => stream.write_all(&pattern(LEN, 2)).await.unwrap(),
                Flush => stream.flush().await.unwrap(),
                Drain => stream.drain().await.unwrap(),
                Shutdown => stream.shutdown().await.unwrap(),
            }
            expected += usize::from(matches!(behind, Send | SendVectored | Write));
            assert_eq!(accepted(&stream), expected * LEN, "{behind:?}");
            if behind == Drain {
                assert_eq!(stream.stats().in_flight_calls, 0);
            }
            assert!(stream.close(None).await.drained);
            let arrived = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
            assert_arrived(&arrived, LEN, expected);
        }));
    }
}

#[test]
fn a_unix_stream_sends_by_copy() {
    one_thread().block_on(async {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) = (Stream::new(near).unwrap(), Stream::new(far).unwrap());
        assert!(!near.capabilities().supported);
        let mut arrived = vec![0; 4 << 20];
        let expected = pattern(4 << 20, 7);
        let (sent, read) =
            soon(async { tokio::join!(near.send(expected.clone()), far.read_exact(&mut arrived)) })
                .await;
        let fate = soon(near.released(sent.unwrap())).await.unwrap();
        assert!(fate.is_released());
        read.unwrap();
        assert_same(&arrived, &expected);
        assert!(soon(near.close(Some(Duration::from_secs(60)))).await.drained);
        assert_eq!(soon(far.read(&mut arrived)).await.unwrap(), 0, "the end");
    });
}

#[test]
fn a_try_send_takes_what_fits_and_keeps_the_order() {
    one_thread().block_on(async {
        let (mut stream, far) = stream_of(zero_copy().max_in_flight_sends(1), STALLED);
        let first = stream.try_send(pattern(LEN, 0)).unwrap();
        Pin::new(&mut stream).start_send(pattern(LEN, 1).into()).unwrap();
        let Err(SendError::WouldBlock(third)) = stream.try_send(pattern(LEN, 2)) else {
            panic!("the sink has a payload")
        };
        let peer = reader(far, Duration::ZERO);
        assert!(soon(stream.released(first)).await.unwrap().is_released());
        soon(poll_fn(|cx| Sink::poll_ready(Pin::new(&mut stream), cx))).await.unwrap();
        let mut refused = Some(third);
        while let Some(buf) = refused.take() {
            match stream.try_send(buf) {
                Ok(third) => assert_eq!(third.sequence(), 2),
                Err(SendError::WouldBlock(buf)) => {
                    soon(poll_fn(|cx| Sink::poll_ready(Pin::new(&mut stream), cx))).await.unwrap();
                    refused = Some(buf);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(soon(stream.close(None)).await.drained);
        assert_arrived(&peer.join().unwrap(), LEN, 3);
    });
}

#[test]
fn a_close_that_takes_too_long_aborts() {
    one_thread().block_on(async {
        let (mut stream, _far) = stream(STALLED);
        soon(stream.send(pattern(LEN, 0))).await.unwrap();
        let report = soon(stream.close(Some(Duration::from_millis(20)))).await;
        assert!(report.aborted && !report.drained, "{report:?}");
    });
}

#[test]
fn a_reset_ends_every_wait_with_its_error() {
    one_thread().block_on(async {
        let (stream, far) = stream(STALLED);
        let (mut read, mut write) = stream.into_split();
        let first = soon(write.send(pattern(LEN, 0))).await.unwrap();
        let waiting = tokio::spawn({
            let released = write.released(first);
            async move {
                let (fate, read) = tokio::join!(released, read.read_u8());
                (fate.unwrap(), read.unwrap_err().kind())
            }
        });
        let sending = tokio::spawn(async move {
            let sent = write.send(pattern(8 << 20, 1)).await;
            (sent, write)
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset(far);
        let (sent, mut write) = soon(sending).await.unwrap();
        assert!(matches!(sent, Err(SendError::Truncated { .. })), "{sent:?}");
        let (fate, read) = soon(waiting).await.unwrap();
        assert!(fate.is_released(), "accepted as a whole: {fate:?}");
        // The kernel tells the reset once, to the send or to the read.
        assert_eq!(read, ErrorKind::ConnectionReset);
        let refused = soon(write.send(pattern(LEN, 2))).await.unwrap_err();
        assert!(matches!(&refused, SendError::Connection { .. }), "{refused}");
        assert_eq!(refused.into_buf().unwrap().len(), LEN);
        soon(write.drain()).await.unwrap();
    });
}

/// The kernel tells a reset once, and here the send hears of it.
#[test]
fn a_download_cut_by_a_reset_never_looks_whole() {
    one_thread().block_on(soon(async {
        let (mut stream, mut far) = stream(Default::default());
        far.write_all(b"the first part").unwrap();
        reset(far);
        let error = loop {
            match stream.send(pattern(LEN, 0)).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        let SendError::Connection { error, .. } = error else { panic!("{error}") };
        assert_eq!(io::Error::from(error).kind(), ErrorKind::ConnectionReset);
        let mut arrived = Vec::new();
        let cut = stream.read_to_end(&mut arrived).await.unwrap_err();
        assert_eq!((&*arrived, cut.kind()), (&b"the first part"[..], ErrorKind::ConnectionReset));
        let (mut read, write) = stream.into_split();
        let _ = write.close(None).await;
        for _ in 0..2 {
            assert_eq!(read.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(read.read(&mut []).await.unwrap(), 0, "asks for nothing");
    }));
}

/// When TCP gives up, the kernel reports the last soft error, and here the send hears of it.
#[test]
fn a_download_cut_by_the_loss_of_the_peers_host_never_looks_whole() {
    in_a_namespace(|| {
        // The soft error takes this way.
        raise_loopback();
        let road = Road::build()?;
        let (near, mut far) = road.connect(1 << 20);
        far.write_all(b"half of a download").unwrap();
        // In milliseconds. The questions for the host's address fail long before.
        set_option(&near, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &2000);
        let between = format!("/proc/sys/net/ipv4/neigh/{}/retrans_time_ms", road.near_device());
        fs::write(between, "50").map_err(|error| error.to_string())?;
        let device = road.far_device().to_owned();
        one_thread().block_on(async {
            let mut stream = Stream::new(near).unwrap();
            let mut arrived = vec![0; 18];
            stream.read_exact(&mut arrived).await.unwrap();
            // The host answers no question for its address any more.
            road.at_far_end(move || {
                run(&format!("ip address flush dev {device}"))?;
                run(&format!("ip link set {device} arp off"))
            })?;
            run(&format!("ip neighbour flush dev {}", road.near_device()))?;
            let error = loop {
                match stream.write_all(&[0; 1000]).await {
                    Ok(()) => tokio::time::sleep(Duration::from_millis(100)).await,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            for _ in 0..2 {
                let cut = stream.read_to_end(&mut arrived).await.unwrap_err();
                assert_eq!((arrived.len(), cut.kind()), (18, ErrorKind::HostUnreachable));
            }
            Ok(())
        })
    });
}

#[test]
fn a_reset_told_to_a_read_is_told_to_the_next() {
    one_thread().block_on(soon(async {
        let (mut stream, mut far) = stream(Default::default());
        far.write_all(b"the first part").unwrap();
        reset(far);
        for _ in 0..3 {
            let cut = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
        }
    }));
}

/// The peer closes without reading everything: its stream is whole, and the send learns of the reset
/// behind.
#[test]
fn a_whole_download_ends_in_order_despite_a_later_reset() {
    one_thread().block_on(soon(async {
        let (mut stream, mut far) = stream(Default::default());
        far.write_all(b"everything").unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        reset(far);
        while stream.send(pattern(LEN, 0)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let mut arrived = Vec::new();
        stream.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, b"everything");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }));
}

#[test]
fn returned_payloads_are_there_after_the_release() {
    one_thread().block_on(async {
        let (mut stream, far) =
            stream_of(zero_copy().on_release(OnRelease::Return), Default::default());
        let _peer = reader(far, Duration::ZERO);
        let ticket = soon(stream.send(pattern(LEN, 3))).await.unwrap();
        assert!(soon(stream.released(ticket)).await.unwrap().is_released());
        let returned = stream.next_returned().unwrap();
        assert_eq!(returned.ticket, ticket);
        assert!(stream.next_returned().is_none());
        drop(stream);
    });
}

#[test]
fn a_ticket_of_another_stream_has_no_fate() {
    one_thread().block_on(async {
        let [(mut one, far), (other, _far)] = [(); 2].map(|()| stream(Default::default()));
        let _peer = reader(far, Duration::ZERO);
        let ticket = soon(one.send(vec![1])).await.unwrap();
        assert_eq!(other.released(ticket).await, Err(WaitError::ForeignTicket));
        drop(one);
    });
}

#[test]
fn a_wait_after_the_end_of_the_runtime_fails() {
    let (mut stream, mut far) = {
        let runtime = one_thread();
        let _entered = runtime.enter();
        stream(STALLED)
    };
    one_thread().block_on(async {
        let ticket = stream.send(pattern(LEN, 0)).await.unwrap();
        assert_eq!(soon(stream.released(ticket)).await, Err(WaitError::NoThread));
        let error = soon(stream.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other);
        far.write_all(b"x").unwrap();
        let _ = stream.abort();
    });
}

#[test]
fn a_socket_is_non_blocking_in_a_stream() {
    fn flags<T: IntoSocket>(socket: T) -> i32
    where
        T::Socket: std::os::fd::AsRawFd,
    {
        use std::os::fd::AsRawFd;
        let stream = Stream::new(socket).unwrap();
        // SAFETY: F_GETFL of fcntl(2) takes no pointers.
        unsafe { libc::fcntl(stream.get_ref().as_raw_fd(), libc::F_GETFL) }
    }
    one_thread().block_on(async {
        let (near, far) = pair();
        assert_ne!(flags(near) & libc::O_NONBLOCK, 0);
        far.set_nonblocking(true).unwrap();
        assert_ne!(flags(TcpStream::from_std(far).unwrap()) & libc::O_NONBLOCK, 0);
        let error = Stream::adopt(Sender::builder().max_in_flight_bytes(0), pair().0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

/// A task that never waits lets others run.
#[test]
fn a_busy_task_yields() {
    one_thread().block_on(async {
        let (stream, far) = stream_of(Sender::builder().policy(Policy::Never), Default::default());
        let _peer = reader(far.try_clone().unwrap(), Duration::ZERO);
        let (mut read, mut write) = stream.into_split();
        let busy = tokio::spawn(async move {
            loop {
                write.send(&[7; 1]).await.unwrap();
            }
        });
        tokio::task::yield_now().await;
        busy.abort();
        let mut far = far;
        let feeding = thread::spawn(move || while far.write_all(&[7; 1 << 16]).is_ok() {});
        let busy = tokio::spawn(async move { while read.read_u8().await.is_ok() {} });
        tokio::task::yield_now().await;
        busy.abort();
        let _ = busy.await;
        feeding.join().unwrap();
    });
}

/// Notifications and room come between the data.
#[test]
fn reads_find_all_that_was_written() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let (stream, mut far) = stream(Default::default());
            let _draining = reader(far.try_clone().unwrap(), Duration::ZERO);
            let (mut read, mut write) = stream.into_split();
            let sending = tokio::spawn(async move {
                loop {
                    soon(write.send(pattern(LEN, 0))).await.unwrap();
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            });
            let mut expected = vec![0; 1 << 20];
            fill(&mut expected, 5);
            let mut random = random(seed());
            let written = expected.clone();
            let writing = thread::spawn(move || {
                let mut left = &written[..];
                while !left.is_empty() {
                    let (now, later) = left.split_at(left.len().min(1 + random() as usize % 9000));
                    far.write_all(now).unwrap();
                    left = later;
                    if random().is_multiple_of(4) {
                        thread::sleep(Duration::from_micros(random() % 500));
                    }
                }
                far.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut arrived = Vec::new();
            soon(read.read_to_end(&mut arrived)).await.unwrap();
            sending.abort();
            writing.join().unwrap();
            assert_same(&arrived, &expected);
        });
    }
}
