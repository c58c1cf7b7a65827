//! Requests of well-behaved clients.

use std::{fs::File, time::SystemTime};

use crate::{
    common::{assert_same, pattern},
    site::Site,
};

#[test]
fn an_answer_describes_the_file() {
    let site = Site::new();
    site.write("page.html", b"<p>hello");
    let server = site.serve("");
    let answer = server.connect().get("/page.html?query", &[]);
    assert_eq!((answer.status, answer.text()), (200, "<p>hello"));
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.field("accept-ranges"), Some("bytes"));
    assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.field("connection"), Some("keep-alive"));
    let etag = answer.field("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
    let date = |name| httpdate::parse_http_date(answer.field(name).unwrap()).unwrap();
    assert!(date("last-modified") < date("date"));
    let log = server.end().in_order();
    assert!(log.contains("\"GET /page.html?query HTTP/1.1\" 200 8\n"), "{log}");
}

#[test]
fn files_of_all_sizes_arrive() {
    let site = Site::new();
    let sizes = [0, 1, 4095, 16 << 10, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 1_000_000];
    for size in sizes {
        site.write(&size.to_string(), &pattern(size, size));
    }
    for zerocopy in ["auto", "prefer", "never"] {
        for cache in ["0", "50"] {
            let server = site.serve(&format!("--zerocopy {zerocopy} --cache {cache}"));
            let mut client = server.connect();
            for size in sizes {
                let answer = client.get(&format!("/{size}"), &[]);
                assert_same(&answer.body, &pattern(size, size));
            }
            drop(client);
            server.end().in_order();
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let site = Site::new();
    let sizes = [3, 300_000, 0, 20_000, 17];
    for size in sizes {
        site.write(&size.to_string(), &pattern(size, size));
    }
    let server = site.serve("");
    let mut client = server.connect();
    let mut requests = String::new();
    for round in 0..10 {
        for size in sizes {
            let method = if round == 3 { "HEAD" } else { "GET" };
            requests += &format!("{method} /{size} HTTP/1.1\r\nHost: x\r\n\r\n");
        }
    }
    client.write(requests);
    for round in 0..10 {
        for size in sizes {
            let answer = if round == 3 { client.head() } else { client.answer() };
            assert_eq!(answer.field("content-length"), Some(size.to_string().as_str()));
            assert!(round == 3 || answer.body == pattern(size, size)[..]);
        }
    }
    server.end().in_order();
}

#[test]
fn a_connection_ends_when_the_client_asks_or_is_old() {
    let site = Site::with_data(10);
    let server = site.serve("");
    for (request, is_kept) in [
        ("GET /data HTTP/1.1\r\nHost: x\r\n\r\n", true),
        ("GET /missing HTTP/1.1\r\nHost: x\r\n\r\n", true),
        ("GET /data HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n", false),
        ("GET /data HTTP/1.1\r\nHost: x\r\nConnection: te, close\r\n\r\n", false),
        ("GET /data HTTP/1.0\r\n\r\n", false),
        ("GET /data HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut client = server.connect();
        client.write(request);
        let answer = client.answer();
        let expected = if is_kept { "keep-alive" } else { "close" };
        assert_eq!(answer.field("connection"), Some(expected), "{request}");
        if is_kept {
            assert_eq!(client.get("/data", &[]).status, 200);
        } else {
            client.assert_closed();
        }
    }
    server.end().in_order();
}

#[test]
fn ranges_are_parts_of_the_file() {
    let site = Site::with_data(1_000_000);
    let server = site.serve("");
    let mut client = server.connect();
    let data = pattern(1_000_000, 1);
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=262143-262144", 262_143..262_145),
        ("Bytes=300000-", 300_000..1_000_000),
        ("bytes=-7", 999_993..1_000_000),
        ("bytes=-2000000", 0..1_000_000),
        ("bytes=5-99999999999999999999999", 5..1_000_000),
    ] {
        let answer = client.get("/data", &[&format!("Range: {range}")]);
        assert_eq!(answer.status, 206, "{range}");
        let field = format!("bytes {}-{}/1000000", part.start, part.end - 1);
        assert_eq!(answer.field("content-range"), Some(field.as_str()));
        assert_same(&answer.body, &data[part]);
    }
    for range in ["bytes=1000000-", "bytes=-0", "bytes=99999999999999999999-"] {
        let answer = client.get("/data", &[&format!("Range: {range}")]);
        assert_eq!((answer.status, answer.field("content-range")), (416, Some("bytes */1000000")));
    }
    // Ignored: several ranges, other units, and what is no range.
    for range in ["bytes=0-1,5-6", "lines=0-1", "bytes=2-1", "bytes=a-b", "bytes=-", "bytes"] {
        let answer = client.get("/data", &[&format!("Range: {range}")]);
        assert_eq!((answer.status, answer.body.len()), (200, 1_000_000), "{range}");
    }
    client.ask("HEAD", "/data", &["Range: bytes=0-1"]);
    assert_eq!(client.head().status, 200, "a range is for GET alone");
    server.end().in_order();
}

#[test]
fn conditions_are_evaluated_in_the_order_of_the_rfc() {
    let site = Site::with_data(100);
    let server = site.serve("");
    let mut client = server.connect();
    let answer = client.get("/data", &[]);
    let [etag, modified] = ["etag", "last-modified"].map(|name| answer.field(name).unwrap());
    let (old, new) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    for (fields, status) in [
        (&[format!("If-None-Match: {etag}")][..], 304),
        (&[format!("If-None-Match: \"x\", W/{etag}")], 304),
        (&["If-None-Match: \"x\"".to_owned(), format!("If-None-Match: {etag}")], 304),
        (&["If-None-Match: *".to_owned()], 304),
        (&["If-None-Match: \"x\"".to_owned(), format!("If-Modified-Since: {new}")], 200),
        (&[format!("If-Modified-Since: {modified}")], 304),
        (&[format!("If-Modified-Since: {old}")], 200),
        (&["If-Modified-Since: yesterday".to_owned()], 200),
        (&[format!("If-Match: {etag}")], 200),
        (&[format!("If-Match: W/{etag}")], 412),
        (&["If-Match: *".to_owned()], 200),
        (&["If-Match: \"x\"".to_owned(), format!("If-None-Match: {etag}")], 412),
        (&[format!("If-Match: {etag}"), format!("If-Unmodified-Since: {old}")], 200),
        (&[format!("If-Unmodified-Since: {old}")], 412),
        (&[format!("If-Unmodified-Since: {modified}")], 200),
        (&["Range: bytes=0-9".to_owned(), format!("If-Range: {etag}")], 206),
        (&["Range: bytes=0-9".to_owned(), format!("If-Range: {modified}")], 206),
        (&["Range: bytes=0-9".to_owned(), format!("If-Range: W/{etag}")], 200),
        (&["Range: bytes=0-9".to_owned(), "If-Range: \"x\"".to_owned()], 200),
        (&["Range: bytes=0-9".to_owned(), format!("If-Range: {new}")], 200),
        (&["Range: bytes=0-9".to_owned(), format!("If-None-Match: {etag}")], 304),
    ] {
        let fields = Vec::from_iter(fields.iter().map(String::as_str));
        let answer = client.get("/data", &fields);
        assert_eq!(answer.status, status, "{fields:?}");
        if status == 304 {
            assert_eq!((answer.field("etag"), answer.field("content-length")), (Some(etag), None));
        }
    }
    server.end().in_order();
}

#[test]
fn a_file_changed_just_now_has_a_weak_tag() {
    let site = Site::with_data(100);
    let server = site.serve("");
    let file = File::options().write(true).open(site.root.join("data")).unwrap();
    // A little ahead, so that a slow machine sees the same.
    file.set_modified(SystemTime::now() + std::time::Duration::from_secs(100)).unwrap();
    let mut client = server.connect();
    let answer = client.get("/data", &[]);
    let etag = answer.field("etag").unwrap();
    assert!(etag.starts_with("W/"), "{etag}");
    let answer = client.get("/data", &["Range: bytes=0-9", &format!("If-Range: {etag}")]);
    assert_eq!(answer.status, 200, "bytes of two versions are not mixed");
    server.end().in_order();
}

#[test]
fn a_folder_is_its_index_or_a_listing() {
    let site = Site::new();
    let name = "a <b>&\"'#?%: ü";
    site.write(&format!("list/{name}"), b"found");
    site.write("list/sub/file", b"");
    site.write("list/.hidden", b"");
    site.write("indexed/index.html", b"index");
    let server = site.serve("");
    let mut client = server.connect();
    let answer = client.get("/list/", &[]);
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    let page = answer.text();
    assert!(page.contains(">a &lt;b&gt;&amp;&quot;&#39;#?%: ü</a>"), "{page}");
    assert!(page.contains("<a href=\"sub/\">sub/</a>"), "{page}");
    assert!(!page.contains("hidden"), "{page}");
    let link = page.split('"').find(|word| word.starts_with("a%20")).unwrap();
    assert_eq!(client.get(&format!("/list/{link}"), &[]).text(), "found");
    assert_eq!(client.get("/indexed/", &[]).text(), "index");
    for (path, location) in [
        ("/list", "/list/"),
        ("/list?a=b", "/list/?a=b"),
        ("//list", "/list/"),
        ("/list/sub", "/list/sub/"),
        ("http://localhost/list", "/list/"),
    ] {
        let answer = client.get(path, &[]);
        assert_eq!((answer.status, answer.field("location")), (301, Some(location)), "{path}");
    }
    assert_eq!(client.get("/indexed/index.html/", &[]).status, 404);
    client.ask("HEAD", "/list/", &[]);
    assert_eq!(client.head().field("content-length"), Some(page.len().to_string().as_str()));
    server.end().in_order();
}
