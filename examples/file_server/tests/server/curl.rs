//! curl and sha256sum as clients.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    common::{assert_same, pattern, skip, test_of},
    site::{Server, Site},
};

const BYTES: usize = 5_000_000;

/// Runs curl to its end, and returns its output.
pub(crate) fn curl(words: &str, server: &Server) -> Vec<u8> {
    let words = words.replace("URL/", &server.url);
    let output = Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "60"])
        .args(words.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns `true` if the programs are missing, with a line about the skipped test.
pub(crate) fn lack(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    if let Some(program) = missing {
        skip(test, &format!("no {program}"));
    }
    missing.is_some()
}

/// The output of sha256sum over bytes of a file.
pub(crate) fn sha256(path: &std::path::Path) -> Vec<u8> {
    let file = fs::File::open(path).unwrap();
    let output = Command::new("sha256sum").stdin(file).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn curl_receives_files_with_the_right_sums() {
    if lack(test_of(&|| ()), &["curl", "sha256sum"]) {
        return;
    }
    let site = Site::with_data(BYTES);
    for settings in ["--zerocopy prefer", "--zerocopy never", "--memory 1", ""] {
        let server = site.serve(settings);
        let copy = site.outside().join("copy");
        curl(&format!("URL/data -o {}", copy.display()), &server);
        assert_eq!(sha256(&copy), sha256(&site.root.join("data")));
        server.end().in_order();
    }
}

#[test]
fn curl_receives_ranges_and_resumes() {
    if lack(test_of(&|| ()), &["curl"]) {
        return;
    }
    let site = Site::with_data(BYTES);
    let server = site.serve("");
    let data = pattern(BYTES, 1);
    assert_same(&curl("URL/data --range 1000-2999999", &server), &data[1000..3_000_000]);
    assert_same(&curl("URL/data --range -5", &server), &data[BYTES - 5..]);
    let copy = site.outside().join("copy");
    fs::write(&copy, &data[..1_234_567]).unwrap();
    curl(&format!("URL/data -C - -o {}", copy.display()), &server);
    assert_same(&fs::read(copy).unwrap(), &data);
    server.end().in_order();
}

#[test]
fn curl_uses_one_connection_for_many_files() {
    if lack(test_of(&|| ()), &["curl"]) {
        return;
    }
    let site = Site::with_data(300_000);
    let server = site.serve("");
    let words = "-w %{stderr}%{num_connects} URL/data URL/data URL/missing-is-no-end URL/data";
    let words = words.replace("URL/", &server.url);
    let output = Command::new("curl").arg("-sS").args(words.split_whitespace()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "1000", "connections per file");
    let data =
        [&pattern(300_000, 1)[..], &pattern(300_000, 1), b"404 Not Found\n", &pattern(300_000, 1)];
    assert_same(&output.stdout, &data.concat());
    let log = server.end().in_order();
    assert_eq!(log.lines().count(), 4, "{log}");
}

#[test]
fn curl_asks_for_a_changed_file_only() {
    if lack(test_of(&|| ()), &["curl"]) {
        return;
    }
    let site = Site::with_data(1000);
    let server = site.serve("");
    let status = "-o /dev/null -w %{http_code}";
    let tag = site.outside().join("tag");
    let tag = tag.display();
    assert_eq!(curl(&format!("{status} --etag-save {tag} URL/data"), &server), b"200");
    assert_eq!(curl(&format!("{status} --etag-compare {tag} URL/data"), &server), b"304");
    let data = site.root.join("data");
    let since = format!("{status} -z {} URL/data", data.display());
    assert_eq!(curl(&since, &server), b"304");
    site.write("data", b"changed");
    assert_eq!(curl(&format!("{status} --etag-compare {tag} URL/data"), &server), b"200");
    server.end().in_order();
}

#[test]
fn curl_follows_a_folder_to_its_index() {
    if lack(test_of(&|| ()), &["curl"]) {
        return;
    }
    let site = Site::new();
    site.write("folder/index.html", b"index");
    let server = site.serve("");
    assert_eq!(curl("-L URL/folder", &server), b"index");
    assert_eq!(curl("-L --http1.0 URL/folder", &server), b"index");
    assert_eq!(
        curl("--path-as-is -o /dev/null -w %{http_code} URL/folder/./ --no-fail", &server),
        b"404"
    );
    server.end().in_order();
}
