//! The primary in this process.

use std::{
    fs,
    io::{Read, Write, pipe},
    path::Path,
};

use crate::{
    Place, Service, assert_same, client::Client, eventually, generated, within, write_all,
};
use replication::source::Generator;

const BLOCK: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_replica_holds_its_quota_and_stops_no_other() {
    let place = Place::of("stall");
    let words = "--quota 2 --window 4 --block-bytes 65536 --patience 3600 --zerocopy prefer";
    let (input, mut feed) = pipe().unwrap();
    let service = Service::start(&place, words, input).await;
    assert_eq!(service.pool.stats().classes[0].slots, 4 + 2 + 3, "the window, two, quota and one");
    let stalled = Client::join(service.address, 2).await;
    feed.write_all(&generated(4 * BLOCK)).unwrap();
    let good = [0, 1].map(|id| service.replica(id, Path::new(&place.path(&format!("r{id}")))));
    let rest = generated(400 * BLOCK)[(4 * BLOCK) as usize..].to_vec();
    drop(write_all(feed, rest));
    for replica in good {
        assert_eq!(within(replica).await.unwrap().unwrap(), 400);
    }
    let stats = service.pool.stats();
    assert!((1..=2).contains(&stats.in_flight()), "{stats:?}");
    drop(stalled);
    let report = service.stop().await;
    assert!(report.is_complete() && report.accepted == 400, "{report}");
    for file in ["r0", "r1"] {
        assert_same(&place.read(file), &generated(400 * BLOCK));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_are_sent_the_same_buffer() {
    let place = Place::of("same");
    let words = "--replicas 20 --window 3 --buffers 5 --block-bytes 1048576 --patience 3600";
    let service = Service::start(&place, words, Generator::new(2 << 20)).await;
    let mut clients = Vec::new();
    for id in 0..20 {
        let mut client = Client::join(service.address, id).await;
        client.message().await.unwrap();
        clients.push(client);
    }
    // Every feed is in the middle of the first block. One buffer may be with the source.
    let stats = service.pool.stats();
    assert!(stats.free() >= 2, "20 replicas use the buffers of two blocks: {stats:?}");
    drop(clients);
    let _ = service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_replicas_share_a_small_pool() {
    let place = Place::of("many");
    let words = "--replicas 200 --quorum 200 --window 8 --buffers 24 --block-bytes 65536";
    let (input, feed) = pipe().unwrap();
    let service = Service::start(&place, words, input).await;
    let follow = |id| async move {
        let mut client = Client::join(service.address, id).await;
        let mut bytes = Vec::new();
        while let Some(data) = client.block().await {
            bytes.extend(data);
            client.acknowledge().await;
        }
        bytes
    };
    let clients = Vec::from_iter((0..200).map(|id| tokio::spawn(follow(id))));
    let data = generated(30 * BLOCK + 1234);
    drop(write_all(feed, data.clone()));
    for client in clients {
        assert_same(&within(client).await.unwrap(), &data);
    }
    let report = service.report().await;
    assert!(report.is_complete() && report.committed == 31, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_acknowledgements_the_input_waits_and_the_report_names_the_blocks() {
    let place = Place::of("window");
    let words = "--replicas 2 --quorum 2 --window 4 --block-bytes 1000 --patience 3600";
    let service = Service::start(&place, words, Generator::new(u64::MAX)).await;
    let mut silent = Client::join(service.address, 0).await;
    let mut other = Client::join(service.address, 1).await;
    for _ in 0..4 {
        assert_same(&silent.block().await.unwrap(), &other.block().await.unwrap());
    }
    silent.acknowledge().await;
    other.position = replication::wire::Position::default().behind(&generated(1000));
    other.acknowledge().await;
    // The first block is committed, so there is room for one more.
    silent.block().await.unwrap();
    service.stop.notify_one();
    assert_eq!(silent.block().await, None);
    let report = service.stop().await;
    assert_eq!((report.accepted, report.committed, report.bytes), (5, 1, 5000));
    assert!(!report.is_complete());
    let text = report.to_string();
    for line in ["not committed: blocks 1 to 4", "replica 0: 4 blocks", "replica 1: 1 blocks"] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_takes_the_place_of_the_old_one() {
    let place = Place::of("place");
    let (input, mut feed) = pipe().unwrap();
    let words = "--replicas 2 --quorum 2 --block-bytes 1000";
    let service = Service::start(&place, words, input).await;
    let mut old = Client::join(service.address, 0).await;
    feed.write_all(&generated(1000)).unwrap();
    old.block().await.unwrap();
    // Two connections of one replica are no quorum.
    let mut new = Client::join(service.address, 0).await;
    new.block().await.unwrap();
    new.acknowledge().await;
    old.ended().await;
    feed.write_all(&generated(1000)).unwrap();
    new.block().await.unwrap();
    // The file of the replica is lost.
    let mut empty = Client::join(service.address, 0).await;
    empty.block().await.unwrap();
    drop(feed);
    let report = service.stop().await;
    assert_eq!((report.accepted, report.committed), (2, 0), "{report}");
    assert!(report.to_string().contains("replica 0: 0 blocks acknowledged"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_port_sends_committed_blocks_only() {
    let place = Place::of("tail");
    let (input, mut feed) = pipe().unwrap();
    let words = "--replicas 1 --block-bytes 1000 --tail 127.0.0.1:0";
    let service = Service::start(&place, words, input).await;
    let mut client = Client::join(service.address, 0).await;
    let mut tail = std::net::TcpStream::connect(service.tail.unwrap()).unwrap();
    tail.write_all(b"ignored").unwrap();
    feed.write_all(&generated(2500)).unwrap();
    client.block().await.unwrap();
    client.acknowledge().await;
    client.block().await.unwrap();
    drop(feed);
    client.block().await.unwrap();
    let mut bytes = vec![0; 1000];
    tail.read_exact(&mut bytes).unwrap();
    let report = service.stop().await;
    assert_eq!((report.accepted, report.committed), (3, 1), "{report}");
    let _ = tail.read_to_end(&mut bytes);
    assert_same(&bytes, &generated(1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_tail_port_that_read_nothing_stop_no_replica() {
    let place = Place::of("tails");
    let words = "--quota 2 --window 4 --block-bytes 65536 --patience 3600 --zerocopy prefer --tails 3 \
        --tail 127.0.0.1:0";
    let (input, feed) = pipe().unwrap();
    let service = Service::start(&place, words, input).await;
    assert_eq!(service.pool.stats().classes[0].slots, 4 + 2 + 3 + 3 * 3);
    // Two more wait for a place.
    let tails = [(); 5].map(|()| std::net::TcpStream::connect(service.tail.unwrap()).unwrap());
    let replicas =
        [0, 1, 2].map(|id| service.replica(id, Path::new(&place.path(&format!("r{id}")))));
    drop(write_all(feed, generated(400 * BLOCK)));
    for replica in replicas {
        assert_eq!(within(replica).await.unwrap().unwrap(), 400);
    }
    drop(tails);
    let report = service.stop().await;
    assert!(report.is_complete() && report.accepted == 400, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_far_behind_is_served_from_the_log() {
    let place = Place::of("behind");
    let (input, feed) = pipe().unwrap();
    let words = "--replicas 3 --quorum 1 --window 2 --block-bytes 5000";
    let service = Service::start(&place, words, input).await;
    let near = service.replica(0, Path::new(&place.path("near")));
    let feed = write_all(feed, generated(503_000));
    eventually("the first replica has 100 blocks", || place.len("near") == 500_000).await;
    // Junk behind the last whole block: the replicas were killed in the middle of a write.
    let killed = [(1, "far", 15_000), (2, "done", 500_000)].map(|(id, file, len)| {
        fs::write(place.path(file), [&generated(len)[..], &[7; 4000]].concat()).unwrap();
        service.replica(id, Path::new(&place.path(file)))
    });
    eventually("the replica has 100 blocks", || place.len("far") == 500_000).await;
    // Junk goes with the next block.
    let mut feed = feed.join().unwrap();
    feed.write_all(&generated(508_000)[503_000..]).unwrap();
    eventually("the replica has 101 blocks", || place.len("done") == 505_000).await;
    drop(feed);
    let [far, done] = killed;
    for (replica, file) in [(near, "near"), (far, "far"), (done, "done")] {
        assert_eq!(within(replica).await.unwrap().unwrap(), 102);
        assert_same(&place.read(file), &generated(508_000));
    }
    assert!(service.report().await.is_complete());
}
