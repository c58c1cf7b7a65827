//! Files that are sent often.

use std::{
    fs::{self, File},
    thread,
    time::Duration,
};

use crate::{
    common::{assert_same, pattern},
    site::Site,
};

const BYTES: usize = 1 << 20;

/// The cache takes files whose last change is this long ago.
const SETTLED: Duration = Duration::from_millis(3500);

#[test]
fn a_file_is_read_once_until_it_changes() {
    let site = Site::with_data(BYTES);
    let server = site.serve("");
    let mut client = server.connect();
    thread::sleep(SETTLED);
    assert_same(&client.get("/data", &[]).body, &pattern(BYTES, 1));
    let before = server.number("io", "rchar:");
    for _ in 0..5 {
        assert_same(&client.get("/data", &[]).body, &pattern(BYTES, 1));
        assert_same(
            &client.get("/data", &["Range: bytes=7-300000"]).body,
            &pattern(BYTES, 1)[7..300_001],
        );
    }
    let read = server.number("io", "rchar:") - before;
    assert!(read < 100_000, "{read} bytes were read");

    // Written in place, with the same length and the old time stamp.
    let path = site.root.join("data");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, pattern(BYTES, 2)).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_same(&client.get("/data", &[]).body, &pattern(BYTES, 2));
    server.end().in_order();
}

#[test]
fn more_files_than_the_cache_holds_are_served() {
    let site = Site::new();
    for seed in 0..40 {
        site.write(&seed.to_string(), &pattern(100_000, seed));
    }
    thread::sleep(SETTLED);
    // Four buffers for the cache.
    let server = site.serve("--memory 2");
    let mut client = server.connect();
    for round in 0..3 {
        for seed in 0..40 {
            let seed = (seed * (round + 1)) % 40;
            assert_same(&client.get(&format!("/{seed}"), &[]).body, &pattern(100_000, seed));
        }
    }
    server.end().in_order();
}
