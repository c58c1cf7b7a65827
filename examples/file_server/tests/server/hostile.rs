//! Requests that a server has to refuse.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use crate::site::{Site, at_once};

#[test]
fn a_malformed_request_is_refused_and_ends_the_connection() {
    let site = Site::with_data(10);
    let server = site.serve("");
    let long = "x".repeat(20 << 10);
    let fields = "a: b\r\n".repeat(200);
    for (request, status) in [
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
        ("GET\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost : x\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n".to_owned(), 400),
        (
            "GET /data HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_owned(),
            400,
        ),
        ("GET /data HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
        ("GET /data HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".to_owned(), 413),
        ("GET /data HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 413),
        ("POST /data HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".to_owned(), 405),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414),
        (format!("GET /data HTTP/1.1\r\nHost: {long}\r\n\r\n"), 431),
        (format!("GET /data HTTP/1.1\r\nHost: x\r\n{fields}\r\n"), 431),
        ("GET /data HTTP/2.0\r\n\r\n".to_owned(), 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
    ] {
        let mut client = server.connect();
        // The second request hides in the body of the first.
        client.write(request.clone() + "GET /data HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.answer();
        let begin = &request[..request.len().min(60)];
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{begin}");
        client.assert_closed();
    }
    server.end().in_order();
}

#[test]
fn a_method_other_than_get_and_head_is_refused() {
    let site = Site::with_data(10);
    let server = site.serve("");
    let mut client = server.connect();
    for (method, status) in [("DELETE", 405), ("OPTIONS", 405), ("BREW", 501), ("get", 501)] {
        client.ask(method, "/data", &[]);
        let answer = client.answer();
        let allow = (status == 405).then_some("GET, HEAD");
        assert_eq!((answer.status, answer.field("allow")), (status, allow), "{method}");
    }
    server.end().in_order();
}

#[test]
fn no_path_leads_out_of_the_root() {
    let site = Site::with_data(10);
    fs::write(site.outside().join("secret"), "secret").unwrap();
    symlink("../secret", site.root.join("link")).unwrap();
    symlink("..", site.root.join("up")).unwrap();
    symlink("/dev/zero", site.root.join("device")).unwrap();
    symlink("circle", site.root.join("circle")).unwrap();
    symlink("data", site.root.join("inside")).unwrap();
    fs::create_dir(site.root.join("folder")).unwrap();
    symlink("../../secret", site.root.join("folder/index.html")).unwrap();
    site.write(".hidden", b"secret");
    site.write(".git/config", b"secret");
    site.write(".well-known/text", b"open");
    let pipe = site.root.join("pipe");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let server = site.serve("");
    let mut client = server.connect();
    for path in [
        "/../secret",
        "/folder/../../secret",
        "/%2e%2e/secret",
        "/%2E./secret",
        "/..%2fsecret",
        "/folder/%2e%2e%2f%2e%2e%2fsecret",
        "/link",
        "/up/secret",
        "/up/",
        "/device",
        "/circle",
        "/pipe",
        "/.hidden",
        "/.git/config",
        "/./data",
        "/data/",
        "/data/x",
        "/%5c..%5csecret",
        "/%C3%28",
        "//secret",
        "http://x/../secret",
        &format!("/{}", "x".repeat(300)),
        &format!("/{}", "x/".repeat(3000)),
    ] {
        let answer = client.get(path, &[]);
        assert_eq!((answer.status, answer.text()), (404, "404 Not Found\n"), "{path}");
    }
    for path in
        ["/%00", "/data%00.html", "/%", "/%4", "/%zz", "data", "*", "../secret", "localhost:80"]
    {
        assert_eq!(client.get(path, &[]).status, 400, "{path}");
    }
    for (path, text) in [("/inside", 10), ("//data", 10), ("/%64ata", 10), ("/.well-known/text", 4)]
    {
        let answer = client.get(path, &[]);
        assert_eq!((answer.status, answer.body.len()), (200, text), "{path}");
    }
    // An index that leads out is none.
    assert!(client.get("/folder/", &[]).text().contains("index.html"));
    server.end().in_order();
}

#[test]
fn an_unreadable_file_is_forbidden() {
    let site = Site::with_data(10);
    let path = site.root.join("data");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    // Root reads everything.
    let status = if File::open(path).is_ok() { 200 } else { 403 };
    let server = site.serve("");
    assert_eq!(server.connect().get("/data", &[]).status, status);
    server.end().in_order();
}

#[test]
fn a_head_that_does_not_end_is_refused_in_time() {
    let site = Site::with_data(10);
    let server = site.serve("--head-timeout 1");
    let mut client = server.connect();
    client.write("GET /data HTTP/1.1\r\nHost: x\r\n");
    assert_eq!(client.answer().status, 408);
    client.assert_closed();
    server.end().in_order();
}

#[test]
fn a_silent_connection_is_closed_in_time() {
    let site = Site::with_data(10);
    let server = site.serve("--idle-timeout 1");
    server.connect().assert_closed();
    let mut client = server.connect();
    assert_eq!(client.get("/data", &[]).status, 200);
    client.assert_closed();
    server.end().in_order();
}

#[test]
fn random_bytes_stop_no_server() {
    let site = Site::with_data(100_000);
    let server = site.serve("");
    let seed = crate::common::seed();
    let address = server.address().to_owned();
    at_once(4, move |number| {
        let mut random = crate::common::random(seed + number as u64);
        let words = [
            "GET ",
            "HEAD ",
            "/data",
            " HTTP/1.1",
            "\r\n",
            "\r\n\r\n",
            "Host: x",
            "Range: bytes=",
            "-",
            "9",
            ":",
            ", ",
            "Content-Length: ",
            "%2e",
            "/",
            "\0",
            "If-Range: ",
            "\u{fffd}",
            "Connection: close",
        ];
        for _ in 0..100 {
            let mut client = crate::client::Client::connect(&address);
            for _ in 0..random() % 40 {
                let word = words[(random() % words.len() as u64) as usize];
                use std::io::Write;
                if client.socket.get_mut().write_all(word.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    assert_eq!(server.connect().get("/data", &[]).body.len(), 100_000);
    server.end().in_order();
}
