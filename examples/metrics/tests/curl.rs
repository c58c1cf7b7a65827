//! The program, scraped by curl.

use std::{
    io::{BufRead, BufReader, Write, stderr},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The number behind a name with its labels.
fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.trim().parse().unwrap()
}

#[test]
fn curl_reads_counters_and_release_times_that_grow() {
    if Command::new("curl").arg("--version").output().is_err() {
        let line = b"SKIPPED curl_reads_counters_and_release_times_that_grow: no curl\n";
        return stderr().write_all(line).unwrap();
    }
    let mut program = Command::new(env!("CARGO_BIN_EXE_metrics_exporter"));
    let program = program.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn();
    let mut program = Ending(program.unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").expect(&line);
    let scrape = || {
        let curl =
            Command::new("curl").args(["-sS", "--fail", "-i", "--max-time", "60", url]).output();
        let curl = curl.unwrap();
        assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
        String::from_utf8(curl.stdout).unwrap()
    };
    let count = |page: &str| value(page, "pinbuf_release_seconds_count");
    // Past the end of the connection that closes: no counter falls.
    let mut page = scrape();
    for _ in 0..6000 {
        let before = count(&page);
        if before >= 300.0 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
        page = scrape();
        assert!(count(&page) >= before, "{page}");
    }
    assert!(count(&page) >= 300.0, "{page}");
    assert!(page.contains("Content-Type: text/plain; version=0.0.4"), "{page}");
    assert!(page.contains("# TYPE pinbuf_release_seconds histogram"), "{page}");
    assert_eq!(value(&page, "pinbuf_release_seconds_bucket{le=\"+Inf\"}"), count(&page));
    assert!(value(&page, "pinbuf_release_seconds_sum") > 0.0);
    assert!(value(&page, "pinbuf_sent_bytes_total{way=\"zero_copy\"}") > 0.0, "{page}");
    assert!(value(&page, "pinbuf_pool_slots{state=\"free\"}") <= 64.0, "{page}");
}
