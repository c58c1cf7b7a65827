//! The programs, with programs of other makers.

use std::{
    io::{PipeWriter, Write, pipe},
    process::{Command, Stdio},
};

use crate::{
    Place, STUCK, assert_same, eventually, generated,
    process::{Process, start, start_with},
    skipped, write_all,
};

/// Starts a primary that reads a pipe. The addresses of the ports are at the ends of the lines.
fn primary(place: &Place, words: &str) -> (Process, PipeWriter, String, String) {
    let (input, feed) = pipe().unwrap();
    let log = place.path("log");
    let mut args = vec!["primary", "--listen=127.0.0.1:0", "--tail=127.0.0.1:0", "--log", &log];
    args.extend(words.split_whitespace());
    let started = start_with(&args, |command| {
        command.stdin(input);
    });
    let mut primary = started.unwrap();
    let [replicas, tail] =
        ["replicas: ", "tail: "].map(|port| primary.until(port).replace(port, ""));
    (primary, feed, replicas, tail)
}

fn replica(place: &Place, address: &str, id: usize) -> Process {
    let (id, output) = (id.to_string(), place.path(&format!("r{id}")));
    start(&["replica", "--connect", address, "--id", &id, "--output", &output])
}

#[tokio::test]
async fn a_killed_replica_catches_up() {
    let place = Place::of("killed");
    let data = generated(300_000);
    let (primary, feed, address, _) = primary(&place, "--window 4 --block-bytes 5000");
    let mut replicas = [0, 1, 2].map(|id| replica(&place, &address, id));
    let feed = write_all(feed, data[..100_000].to_vec());
    eventually("a half is there", || place.len("r1") >= 50_000).await;
    replicas[1].signal(libc::SIGKILL);
    let feed = write_all(feed.join().unwrap(), data[100_000..].to_vec());
    eventually("the others have all", || {
        [0, 2].iter().all(|id| place.len(&format!("r{id}")) == 300_000)
    })
    .await;
    assert!(place.len("r1") < 300_000);
    replicas[1] = replica(&place, &address, 1);
    eventually("the third has all", || place.len("r1") == 300_000).await;
    drop(feed.join().unwrap());
    for (id, replica) in replicas.into_iter().enumerate() {
        replica.wait(STUCK).expect(0);
        assert_same(&place.read(&format!("r{id}")), &data);
    }
    primary.wait(STUCK).expect(0);
}

#[tokio::test]
async fn sigterm_in_the_middle_loses_nothing() {
    let place = Place::of("sigterm");
    let words = "--generate 1000000000000 --window 4 --block-bytes 4096";
    let (mut primary, _feed, address, _) = primary(&place, words);
    let replicas = [0, 1, 2].map(|id| replica(&place, &address, id));
    eventually("blocks are under way", || place.len("r2") > 100_000).await;
    primary.signal(libc::SIGTERM);
    let done = primary.wait(STUCK);
    done.expect(0);
    let accepted = done.stderr.lines().find_map(|line| line.strip_prefix("accepted: ")).unwrap();
    let bytes = accepted.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(done.stderr.contains("0 in flight, 0 quarantined; 0 mismatches"), "{}", done.stderr);
    for (id, replica) in replicas.into_iter().enumerate() {
        replica.wait(STUCK).expect(0);
        assert_same(&place.read(&format!("r{id}")), &generated(bytes));
    }
}

#[tokio::test]
async fn sigterm_without_a_quorum_prints_the_fate_of_each_block() {
    let place = Place::of("fate");
    let words = "--quorum 2 --window 4 --block-bytes 1000 --patience 3600";
    let (mut primary, mut feed, address, _) = primary(&place, words);
    let only = replica(&place, &address, 0);
    feed.write_all(&generated(3500)).unwrap();
    eventually("three blocks are there", || place.len("r0") == 3000).await;
    primary.signal(libc::SIGTERM);
    // The end was sent.
    only.wait(STUCK).expect(0);
    // Only another replica could commit the blocks.
    primary.signal(libc::SIGTERM);
    let done = primary.wait(STUCK);
    done.expect(1);
    for line in [
        "accepted: 3 blocks, 3000 bytes",
        "committed: 0 blocks",
        "not committed: blocks 0 to 2",
        "replica 0: 3 blocks acknowledged; ended in order",
        "replica 1: 0 blocks acknowledged; never connected",
    ] {
        assert!(done.stderr.contains(line), "{}", done.stderr);
    }
}

#[tokio::test]
async fn programs_of_other_makers_receive_the_stream() {
    const NAME: &str = "programs_of_other_makers_receive_the_stream";
    let place = Place::of("foreign");
    let exists = |program: &str| {
        let command = format!("command -v {program}");
        Command::new("bash")
            .args(["-c", &command])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !exists("sha256sum") {
        return skipped(NAME, "no bash or no sha256sum");
    }
    let (primary, feed, address, tail) = primary(&place, "--block-bytes 100000");
    let (host, port) = tail.split_once(':').unwrap();
    let mut clients = Vec::new();
    for (program, command) in [
        // The protocol of the client sends a line, and takes all bytes to the end.
        ("curl", format!("curl -sS --max-time 120 gopher://{tail}/")),
        ("nc", format!("nc {host} {port} </dev/null")),
        ("socat", format!("socat -u TCP:{tail} -")),
        ("cat", format!("cat </dev/tcp/{host}/{port}")),
    ] {
        if !exists(program) {
            skipped(NAME, &format!("no {program}"));
            continue;
        }
        let command = format!("{command} >{}", place.path(program));
        clients.push((program, Command::new("bash").args(["-c", &command]).spawn().unwrap()));
    }
    let replicas = [0, 1, 2].map(|id| replica(&place, &address, id));
    let data = generated(3_050_000);
    std::fs::write(place.path("want"), &data).unwrap();
    let feed = write_all(feed, data);
    for (program, _) in &clients {
        eventually("the client is connected", || place.len(program) > 0).await;
    }
    drop(feed.join().unwrap());
    for replica in replicas {
        replica.wait(STUCK).expect(0);
    }
    primary.wait(STUCK).expect(0);
    let mut files = vec!["want", "r0", "r1", "r2"];
    for (program, mut client) in clients {
        assert!(client.wait().unwrap().success(), "{program}");
        files.push(program);
    }
    let output = Command::new("sha256sum").args(&files).current_dir(&place.0).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let sums = Vec::from_iter(output.lines().map(|line| &line[..64]));
    assert!(sums.len() == files.len() && sums.iter().all(|sum| *sum == sums[0]), "{output}");
}
