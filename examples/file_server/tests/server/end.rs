//! Clients that vanish or stall, and the end of the server.

use std::{io::Read, net::TcpStream, process::Command, time::Duration};

use crate::{
    common::{assert_same, eventually, pattern},
    site::{Site, at_once},
};

/// More than the sockets of both sides hold.
const BYTES: usize = 32 << 20;

#[test]
fn clients_that_vanish_cost_no_buffer() {
    let site = Site::with_data(BYTES);
    for zerocopy in ["prefer", "never"] {
        let server = site.serve(&format!("--memory 8 --zerocopy {zerocopy}"));
        let address = server.address().to_owned();
        at_once(30, move |number| {
            let mut client = crate::client::Client::connect(&address);
            client.ask("GET", "/data", &[]);
            // Some vanish before the answer, the rest at various places of it. Unread bytes make the end a
            // reset.
            client.socket.read_exact(&mut vec![0; number * 50_000]).unwrap();
        });
        let log = server.end().in_order();
        assert!(log.contains("cut short"), "{log}");
    }
}

#[test]
fn a_killed_curl_costs_no_buffer() {
    let site = Site::with_data(BYTES);
    let server = site.serve("--zerocopy prefer --memory 4");
    let words = ["-s", "--limit-rate", "100k", "-o", "/dev/null"];
    let curls =
        (0..5).map(|_| Command::new("curl").args(words).arg(server.url.clone() + "data").spawn());
    let Ok(curls) = curls.collect::<Result<Vec<_>, _>>() else {
        return crate::common::skip("end::a_killed_curl_costs_no_buffer", "no curl");
    };
    // The first bytes of all clients were sent.
    eventually("the server has read for all", || server.number("io", "rchar:") > 5 << 20);
    for mut curl in curls {
        curl.kill().unwrap();
        curl.wait().unwrap();
    }
    server.end().in_order();
}

#[test]
fn a_client_that_stalls_is_reset() {
    let site = Site::with_data(BYTES);
    for zerocopy in ["prefer", "never"] {
        let server = site.serve(&format!("--stall-timeout 1 --zerocopy {zerocopy}"));
        let mut client = server.connect();
        client.ask("GET", "/data", &[]);
        eventually("the client is reset", || {
            client.socket.get_ref().take_error().unwrap().is_some()
        });
        let log = server.end().in_order();
        assert!(log.contains("cut short"), "{log}");
    }
}

#[test]
fn stalled_clients_with_all_buffers_stop_nothing() {
    let site = Site::with_data(BYTES);
    site.write("other", &pattern(100_000, 2));
    let server = site.serve("--memory 1 --cache 0 --zerocopy prefer --stall-timeout 600");
    let stalled = Vec::from_iter((0..4).map(|_| {
        let mut client = server.connect();
        client.ask("GET", "/data", &[]);
        client
    }));
    let mut client = server.connect();
    for _ in 0..3 {
        assert_same(&client.get("/other", &[]).body, &pattern(100_000, 2));
    }
    drop(stalled);
    server.end().in_order();
}

#[test]
fn more_clients_than_the_limit_wait() {
    let site = Site::with_data(10);
    let server = site.serve("--max-connections 2");
    let mut first = server.connect();
    let mut second = server.connect();
    assert_eq!(first.get("/data", &[]).status, 200);
    assert_eq!(second.get("/data", &[]).status, 200);
    let mut third = server.connect();
    third.ask("GET", "/data", &[]);
    third.socket.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(third.socket.read(&mut [0]).is_err(), "no answer yet");
    third.socket.get_ref().set_read_timeout(crate::common::soon()).unwrap();
    assert_eq!(first.get("/data", &[]).status, 200);
    drop(first);
    assert_eq!(third.answer().status, 200);
    server.end().in_order();
}

#[test]
fn the_descriptors_bound_the_connections() {
    let site = Site::with_data(10);
    let server = site.serve_with_descriptors(100, "");
    let mut first = server.connect();
    assert_eq!(first.get("/data", &[]).status, 200);
    let idle = Vec::from_iter((0..60).map(|_| server.connect()));
    // The listener has all, and the server as many as it can serve.
    for _ in 0..20 {
        assert_eq!(first.get("/data", &[]).status, 200);
    }
    drop(idle);
    assert_eq!(server.connect().get("/data", &[]).status, 200);
    server.end().in_order();
}

#[test]
fn a_signal_ends_idle_connections_and_lets_transfers_finish() {
    for signal in ["TERM", "INT"] {
        let site = Site::with_data(BYTES);
        let mut server = site.serve("");
        let mut idle = server.connect();
        assert_eq!(idle.get("/data", &["Range: bytes=0-0"]).status, 206);
        let mut busy = server.connect();
        busy.ask("GET", "/data", &[]);
        let head = busy.head();
        assert_eq!(head.status, 200);
        server.signal(signal);
        server.await_the_end();
        idle.assert_closed();
        eventually("nothing listens", || TcpStream::connect(server.address()).is_err());
        let mut body = vec![0; BYTES];
        busy.socket.read_exact(&mut body).unwrap();
        assert_same(&body, &pattern(BYTES, 1));
        busy.assert_closed();
        server.ended().in_order();
    }
}

#[test]
fn transfers_that_take_too_long_are_cut_short_at_the_end() {
    let site = Site::with_data(BYTES);
    let server = site.serve("--end-timeout 1 --zerocopy prefer");
    let mut client = server.connect();
    client.ask("GET", "/data", &[]);
    assert_eq!(client.head().status, 200);
    let ended = server.end();
    assert!(ended.notes.contains("cut short"), "{}", ended.notes);
    ended.all_free();
}

#[test]
fn a_file_that_shrinks_cuts_its_transfer_short() {
    let site = Site::with_data(BYTES);
    let server = site.serve("--cache 0");
    let mut client = server.connect();
    client.ask("GET", "/data", &[]);
    assert_eq!(client.head().status, 200);
    std::fs::OpenOptions::new()
        .write(true)
        .open(site.root.join("data"))
        .unwrap()
        .set_len(10)
        .unwrap();
    let mut body = Vec::new();
    let read = client.socket.read_to_end(&mut body);
    assert!(read.is_err() || body.len() < BYTES, "no bytes are invented");
    let log = server.end().in_order();
    assert!(log.contains("cut short"), "{log}");
}
