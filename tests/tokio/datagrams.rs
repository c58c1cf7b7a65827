//! Datagrams and trains over a UDP socket in a runtime.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use pinbuf::{
    SendError, Sender,
    sender::Datagram,
    tokio::{ReadHalf, Stream},
};

use crate::{
    common::{
        assert_same, filled,
        namespace::{in_a_namespace, run},
        pattern, pool,
        process::alone,
        set_option, wait_until_all_free, zero_copy,
    },
    counted, runtimes, soon,
};

const HOSTS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn bound(host: &str) -> UdpSocket {
    let socket = UdpSocket::bind(host).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &(4 << 20));
    socket
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

/// Receives datagrams until so many bytes have come, and returns their number too.
fn received(socket: &UdpSocket, bytes: usize) -> (Vec<u8>, usize) {
    let (mut all, mut got, mut count) = (Vec::new(), [0; 2048], 0);
    while all.len() < bytes {
        let len = socket.recv(&mut got).unwrap();
        all.extend_from_slice(&got[..len]);
        count += 1;
    }
    (all, count)
}

#[test]
fn trains_of_a_task_arrive_and_their_buffers_come_back() {
    for runtime in runtimes() {
        for host in HOSTS {
            let receivers = [bound(host), bound(host)];
            let pool = pool(20_000, 2);
            runtime.block_on(async {
                let near = tokio::net::UdpSocket::bind(host).await.unwrap();
                let mut socket = Stream::adopt(zero_copy(), near).unwrap();
                for seed in 0..20 {
                    let receiver = &receivers[seed % 2];
                    let train = Datagram::to(address(receiver)).segment_size(1000);
                    let buf = filled(pool.alloc_async(20_000).await.unwrap(), 20_000, seed);
                    let ticket = soon(socket.send_to(buf, train)).await.unwrap();
                    let (got, count) = received(receiver, 20_000);
                    assert_same(&got, &pattern(20_000, seed));
                    assert_eq!(count, 20);
                    assert!(soon(socket.released(ticket)).await.unwrap().is_released());
                }
                assert_eq!(socket.stats().released_calls, 20);
                assert!(soon(socket.close(None)).await.drained);
            });
            wait_until_all_free(&pool);
        }
    }
}

/// Receives one datagram.
async fn answer(mut read: ReadHalf<UdpSocket>) -> (Vec<u8>, SocketAddr) {
    let mut got = vec![0; 2048];
    let (len, from) = soon(read.recv_from(&mut got)).await.unwrap();
    got.truncate(len);
    (got, from)
}

#[test]
fn a_datagram_wakes_the_task_that_receives() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let socket = Stream::adopt(Sender::builder(), bound(HOSTS[0])).unwrap();
            let far = bound(HOSTS[0]);
            let near = address(socket.get_ref());
            let (read, mut write) = socket.into_split();
            let receiving = tokio::spawn(answer(read));
            tokio::task::yield_now().await;
            let train = Datagram::to(address(&far)).segment_size(1000);
            soon(write.send_to(pattern(20_000, 1), train)).await.unwrap();
            assert_eq!(received(&far, 20_000).1, 20);
            far.send_to(b"thanks", near).unwrap();
            assert_eq!(receiving.await.unwrap(), (b"thanks".to_vec(), address(&far)));
        });
    }
}

/// The error is the only news of the socket.
#[test]
fn a_refusal_by_the_peer_wakes_the_task_that_receives() {
    // The end of a runtime of another test would wake these tasks too.
    alone(|| {
        for runtime in runtimes() {
            for host in HOSTS {
                runtime.block_on(async {
                    let near = bound(host);
                    near.connect(address(&bound(host))).unwrap();
                    let (mut read, mut write) =
                        Stream::adopt(zero_copy(), near).unwrap().into_split();
                    for len in [100, 20_000] {
                        let receiving = tokio::spawn(counted(async move {
                            let error = soon(read.recv_from(&mut [0; 16])).await.unwrap_err();
                            (read, error)
                        }));
                        // The task waits before the error.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        soon(write.send_to(pattern(len, 1), Datagram::to_peer())).await.unwrap();
                        let ((half, error), polls) = receiving.await.unwrap();
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                        read = half;
                        assert!(polls <= 3, "{polls}");
                    }
                });
            }
        }
    });
}

#[test]
fn a_notification_wakes_the_task_that_receives_once_at_most() {
    // The end of a runtime of another test would wake these tasks too.
    alone(|| {
        const SENDS: usize = 20;
        for runtime in runtimes() {
            runtime.block_on(async {
                let (near, far) = (bound(HOSTS[0]), bound(HOSTS[0]));
                let near_address = address(&near);
                let (read, mut write) = Stream::adopt(zero_copy(), near).unwrap().into_split();
                let receiving = tokio::spawn(counted(answer(read)));
                tokio::task::yield_now().await;
                for seed in 0..SENDS {
                    let to = address(&far);
                    let ticket = soon(write.send_to(pattern(1000, seed), to)).await.unwrap();
                    assert_same(&received(&far, 1000).0, &pattern(1000, seed));
                    assert!(soon(write.released(ticket)).await.unwrap().is_released());
                }
                far.send_to(b"thanks", near_address).unwrap();
                let ((got, _), polls) = receiving.await.unwrap();
                assert_eq!(got, b"thanks");
                assert!(polls <= SENDS + 3, "{polls}");
            });
        }
    });
}

#[test]
fn a_full_socket_holds_a_task_up_until_it_has_room() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        run("tc qdisc add dev lo root tbf rate 8mbit burst 70kb limit 10mb")?;
        for runtime in runtimes() {
            let far = bound(HOSTS[0]);
            let near = bound(HOSTS[0]);
            set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUF, &100_000);
            let pool = pool(60_000, 8);
            let train = Datagram::to(address(&far)).segment_size(1200);
            runtime.block_on(async {
                let mut socket = Stream::adopt(zero_copy(), near).unwrap();
                let mut refused = 0;
                for seed in 0..12 {
                    let buf = filled(pool.alloc_async(60_000).await.unwrap(), 60_000, seed);
                    match socket.try_send_to(buf, train) {
                        Err(SendError::WouldBlock(buf)) => {
                            refused += 1;
                            soon(socket.send_to(buf, train)).await.unwrap();
                        }
                        sent => drop(sent.unwrap()),
                    }
                }
                assert!(refused > 0, "the socket has little room");
                soon(socket.drain()).await.unwrap();
            });
            let (got, count) = received(&far, 12 * 60_000);
            assert_eq!(count, 12 * 50);
            for (seed, train) in got.chunks(60_000).enumerate() {
                assert_same(train, &pattern(60_000, seed));
            }
            wait_until_all_free(&pool);
        }
        Ok(())
    });
}

#[test]
fn a_dropped_send_to_sends_nothing() {
    in_a_namespace(|| {
        run("ip link set lo up")?;
        // One datagram a second, in a queue that takes all.
        run("tc qdisc add dev lo root tbf rate 480kbit burst 70kb limit 10mb")?;
        for runtime in runtimes() {
            let far = bound(HOSTS[0]);
            let near = bound(HOSTS[0]);
            set_option(&near, libc::SOL_SOCKET, libc::SO_SNDBUF, &70_000);
            let pool = pool(60_000, 8);
            runtime.block_on(async {
                let mut socket = Stream::adopt(zero_copy(), near).unwrap();
                let mut accepted = 0;
                loop {
                    let buf = filled(pool.try_alloc(60_000).unwrap(), 60_000, accepted);
                    let send = socket.send_to(buf, address(&far));
                    match tokio::time::timeout(Duration::from_millis(50), send).await {
                        Ok(ticket) => drop(ticket.unwrap()),
                        Err(_) => break,
                    }
                    accepted += 1;
                }
                let stats = socket.stats();
                assert_eq!(stats.zero_copy_calls + stats.copied_calls, accepted as u64);
                assert_eq!(stats.leases, stats.in_flight_calls, "the refused buffer is free");
            });
        }
        Ok(())
    });
}
