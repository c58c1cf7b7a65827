//! Bytes against the protocol, from both sides.

use std::{
    fs,
    io::{Read, Write, pipe},
    net::TcpListener,
    path::Path,
    thread,
};

use replication::{
    replica,
    source::Generator,
    wire::{Kind, MAX_BLOCK, Message, Position},
};
use tokio::io::AsyncWriteExt;

use crate::{Place, Service, assert_same, client::Client, generated, within};

fn message(kind: Kind, number: u32, position: Position) -> [u8; Message::LEN] {
    Message { kind, number, position }.encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_harm_only_their_own_connection() {
    let place = Place::of("hostile");
    let (input, mut feed) = pipe().unwrap();
    let words = "--replicas 2 --quorum 1 --block-bytes 1000 --tail 127.0.0.1:0";
    let service = Service::start(&place, words, input).await;
    let good = service.replica(0, Path::new(&place.path("good")));
    feed.write_all(&generated(5000)).unwrap();
    crate::eventually("5 blocks are there", || place.len("good") == 5000).await;
    let first = Position::default().behind(&generated(1000));

    for bytes in [
        &[0xFF; 4096][..],
        &[0; Message::LEN],
        b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        &message(Kind::Block, 1, first),
        &message(Kind::Hello, 1, Position::default())[..20],
    ] {
        let mut client = Client::connect(service.address).await;
        client.socket.write_all(bytes).await.unwrap();
        // The end of the bytes, for a message in parts.
        client.socket.shutdown().await.unwrap();
        client.ended().await;
    }
    for (id, position, reason) in [
        (2, Position::default(), "no replica has the number 2"),
        (u32::MAX, first, "no replica has the number 4294967295"),
        (1, Position { blocks: u64::MAX, ..first }, "more than the 5 accepted"),
        (1, Position { blocks: 2, ..first }, "the 2 blocks are not the first of this stream"),
        (1, Position { blocks: 0, ..first }, "the 0 blocks are not the first of this stream"),
    ] {
        let mut client = Client::connect(service.address).await;
        client.position = position;
        client.hello(id).await;
        let got = client.refusal().await;
        assert!(got.contains(reason), "{got}");
    }
    let far = Position { blocks: 1 << 40, ..first };
    let wrong = Position { digest: [7; 32], ..first };
    for bytes in [
        &message(Kind::Acknowledgement, 0, far)[..],
        &message(Kind::Acknowledgement, 0, wrong),
        &message(Kind::Acknowledgement, 0, Position::default()),
        &message(Kind::Acknowledgement, 1, first),
        &message(Kind::Hello, 1, first),
        &[message(Kind::Acknowledgement, 0, first); 2].concat(),
    ] {
        let mut client = Client::join(service.address, 1).await;
        client.block().await.unwrap();
        client.socket.write_all(bytes).await.unwrap();
        client.ended().await;
    }
    feed.write_all(&generated(7500)[5000..]).unwrap();
    drop(feed);
    assert_eq!(within(good).await.unwrap().unwrap(), 8);
    assert_same(&place.read("good"), &generated(7500));
    let report = service.report().await;
    assert!(report.is_complete(), "{report}");
}

#[test]
fn a_replica_refuses_a_hostile_primary_and_keeps_its_file() {
    let place = Place::of("primary");
    let data = generated(1000);
    let first = Position::default().behind(&data);
    let second = first.behind(&data);
    let welcome = message(Kind::Welcome, 1000, Position::default());
    let block = |number, position| [&message(Kind::Block, number, position)[..], &data].concat();
    for (bytes, error) in [
        (b"SSH-2.0-OpenSSH_9.6 and more bytes than a message has".to_vec(), "is no message of"),
        (message(Kind::Welcome, 0, first).to_vec(), "0 is outside of"),
        (message(Kind::Welcome, MAX_BLOCK + 1, first).to_vec(), "is outside of"),
        ([&welcome[..], &message(Kind::Block, 1001, second)].concat(), "number: 1001"),
        ([&welcome[..], &message(Kind::Block, 0, second)].concat(), "0 is outside of"),
        ([&welcome[..], &message(Kind::Refusal, 1025, first)].concat(), "1025 is outside of"),
        ([&welcome[..], &message(Kind::End, 0, second)].concat(), "End"),
        ([&welcome[..], &block(1000, first)].concat(), "with data of"),
        ([&welcome[..], &welcome].concat(), "is no message of"),
        (
            [&welcome[..], &message(Kind::Refusal, 5, Position::default()), b"never"].concat(),
            "never",
        ),
    ] {
        let output = place.path("file");
        fs::write(&output, &data).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = listener.local_addr().unwrap().to_string();
        let primary = thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            socket.write_all(&bytes).unwrap();
            // To the end, however it ends: the replica hangs up.
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let config =
            replica::Config { connect, id: 0, output: output.into(), sync: true, patience: 60 };
        let got = replica::run(&config).unwrap_err().to_string();
        assert!(got.contains(error), "{got} is not {error}");
        primary.join().unwrap();
        assert_same(&place.read("file"), &data);
    }
}

/// A primary with long blocks finds no whole block in a short file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_less_than_a_block_is_kept_unless_the_stream_begins_so() {
    let place = Place::of("short");
    let service = Service::start(&place, "--block-bytes 1000", Generator::new(2500)).await;
    let [foreign, torn] = ["foreign", "torn"].map(|name| place.path(name));
    fs::write(&foreign, [7; 700]).unwrap();
    fs::write(&torn, generated(700)).unwrap();
    let refused = within(service.replica(0, Path::new(&foreign))).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("the 700 bytes of the file are not of this stream"));
    assert_same(&place.read("foreign"), &[7; 700]);
    let replicas =
        [service.replica(1, Path::new(&torn)), service.replica(2, Path::new(&place.path("new")))];
    for replica in replicas {
        assert_eq!(within(replica).await.unwrap().unwrap(), 3);
    }
    assert_same(&place.read("torn"), &generated(2500));
    let _ = service.stop().await;
}
