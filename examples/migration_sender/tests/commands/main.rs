//! The program from the outside: real processes, real sockets, every exit code.

#![allow(clippy::print_stdout, reason = "a skipped test says so")]
#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]

mod lab;
mod process;
mod tls;
mod wire;

use std::{
    fs, io,
    os::unix::{fs::symlink, net::UnixListener, process::CommandExt},
    process::Command,
    thread,
    time::Duration,
};

use crate::{
    lab::{Relay, TempDir, noise, text},
    process::{STUCK, receive, run, start, start_slow, start_with},
};

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_migration_sender");

#[test]
fn both_ends_in_one_process_agree() {
    // The guest writes only as much as a slow machine can send during the stop.
    let done = run(&["--memory=48M", "--dirty-rate=200M", "--dirty-working-set=8M", "--json"]);
    done.expect(0);
    let json = done.json();
    assert_eq!(json["status"], "completed");
    assert_eq!(json["verify"]["digest_match"], true);
    assert_eq!(json["verify"]["device_state_match"], true);
    assert!(done.stderr.contains("round 0"), "plain progress lines: {}", done.stderr);
}

#[test]
fn the_json_has_the_names_of_query_migrate() {
    let done = run(&["--memory=16M", "--dirty-working-set=8M", "--json", "--quiet"]);
    done.expect(0);
    assert_eq!(done.stderr, "");
    let json = done.json();
    for name in ["status", "total-time", "downtime", "setup-time", "expected-downtime"] {
        assert!(!json[name].is_null(), "{name}");
    }
    for name in [
        "transferred",
        "total",
        "remaining",
        "duplicate",
        "normal",
        "normal-bytes",
        "mbps",
        "dirty-sync-count",
        "dirty-sync-missed-zero-copy",
        "page-size",
        "pages-per-second",
        "dirty-pages-rate",
        "multifd-bytes",
        "precopy-bytes",
        "downtime-bytes",
    ] {
        assert!(json["ram"][name].is_number(), "ram.{name}");
    }
    let ram = &json["ram"];
    assert_eq!(ram["total"], 16 << 20);
    assert_eq!(ram["remaining"], 0);
    assert_eq!(ram["page-size"], 4096);
    assert!(ram["duplicate"].as_u64() > Some(0), "an eighth of the memory is zero");
    assert!(ram["transferred"].as_u64() > ram["normal-bytes"].as_u64());
    assert!(json["zerocopy"]["policy"].is_string());
    let pool = &json["pool"];
    assert!(pool["free"].as_u64() > Some(0));
    for state in ["owned", "in_flight", "quarantined"] {
        assert_eq!(pool[state], 0, "pool.{state}");
    }
}

#[test]
fn every_policy_and_many_channels_arrive() {
    for policy in ["auto", "prefer", "require", "never"] {
        for channels in ["1", "8"] {
            let done = run(&[
                "--memory=24M",
                "--json",
                "--dirty-rate=300M",
                "--dirty-working-set=4M",
                // Enough for the working set on any machine.
                "--downtime-limit=10000",
                "--zerocopy",
                policy,
                "--channels",
                channels,
            ]);
            done.expect(0);
            let zerocopy = &done.json()["zerocopy"];
            assert_eq!(zerocopy["policy"], policy);
            let sends = zerocopy["sends_zero_copy"].as_u64();
            match policy {
                "never" => assert_eq!(sends, Some(0)),
                _ if cfg!(target_os = "linux") => assert!(sends > Some(0), "{policy}"),
                _ => {}
            }
        }
    }
}

#[test]
fn scattered_dirty_pages_arrive() {
    // With so short a downtime that single pages are left in the last rounds.
    let done = run(&[
        "--memory=32M",
        "--dirty-rate=40M",
        "--dirty-working-set=32M",
        "--rate-limit=100M",
        "--device-state=0",
        "--downtime-limit=1",
        "--max-rounds=1000",
        "--json",
    ]);
    done.expect(0);
    assert!(done.json()["ram"]["dirty-sync-count"].as_u64() > Some(2), "{}", done.stdout);
}

#[test]
fn files_of_any_size_arrive_unchanged() {
    for len in [1, 4095, 4097, (2 << 20) + 1, (300 << 20) + 4096 + 13] {
        let dir = TempDir::new();
        let (image, copy) = (dir.file("image"), dir.file("copy"));
        let content = noise(len);
        fs::write(&image, &content).unwrap();
        let done = run(&[
            "--memory-in",
            text(&image),
            "--memory-out",
            text(&copy),
            "--channels=3",
            "--json",
        ]);
        done.expect(0);
        assert!(fs::read(&copy).unwrap() == content, "the copy of {len} bytes differs");
        assert_eq!(done.json()["ram"]["total"], len);
        dir.assert_holds(&["copy", "image"]);
    }
}

#[test]
fn the_guest_does_not_write_the_file() {
    let dir = TempDir::new();
    let (image, copy) = (dir.file("image"), dir.file("copy"));
    let content = noise((8 << 20) + 100);
    fs::write(&image, &content).unwrap();
    let files = ["--memory-in", text(&image), "--memory-out", text(&copy)];
    // The guest runs for half a second, so that it writes even on a busy machine.
    let pace = ["--rate-limit=16M", "--dirty-rate=4M", "--json"];
    run(&[files.as_slice(), &pace].concat()).expect(0);
    assert!(fs::read(&image).unwrap() == content, "the image was changed");
    let copied = fs::read(&copy).unwrap();
    assert_eq!(copied.len(), content.len());
    assert!(copied != content, "the dirtier wrote nothing");
}

#[test]
fn two_processes_over_ipv4_and_ipv6() {
    for (address, channels) in [("127.0.0.1", "2"), ("[::1]", "8")] {
        let dir = TempDir::new();
        let out = dir.file("out");
        let (receiver, target) = receive(address, &["--json", "--memory-out", text(&out)]);
        let args = ["--memory=40M", "--dirty-working-set=8M", "--json", "--channels", channels];
        let sender = start(&[&["send", target.as_str()][..], &args].concat());
        let (sent, received) = (sender.wait(STUCK), receiver.wait(STUCK));
        sent.expect(0);
        received.expect(0);
        let (sent, received) = (sent.json(), received.json());
        assert_eq!(sent["verify"], received["verify"]);
        assert_eq!(received["status"], "completed");
        assert_eq!(sent["ram"]["normal"], received["ram"]["normal"]);
        assert_eq!(sent["ram"]["duplicate"], received["ram"]["duplicate"]);
        assert_eq!(fs::metadata(&out).unwrap().len(), 40 << 20);
        dir.assert_holds(&["out"]);
    }
}

#[test]
fn ipv6_in_one_process() {
    run(&["--memory=8M", "--address=::1"]).expect(0);
}

#[test]
fn failing_files_and_sockets_exit_with_1() {
    let dir = TempDir::new();
    let (missing, empty) = (dir.file("missing/file"), dir.file("empty"));
    fs::write(&empty, "").unwrap();
    for (args, message) in [
        (vec!["--memory-in", text(&missing)], "No such file"),
        (vec!["--memory-in", text(&dir.0)], "neither a file nor"),
        (vec!["--memory-in", "/dev/zero"], "neither a file nor"),
        (vec!["--memory-in", text(&empty)], "empty"),
        (vec!["--memory=4M", "--memory-out", text(&missing)], "No such file"),
        (vec!["--memory=4M", "--memory-out", text(&dir.0)], "not a regular file"),
        (vec!["--memory=4M", "--address=192.0.2.1"], "cannot listen"),
        (vec!["send", "tcp:127.0.0.1:1", "--memory=4M"], "is `migration_sender receive` running"),
        (vec!["receive", "--listen=192.0.2.1:0"], "cannot listen"),
    ] {
        let done = run(&args);
        done.expect(1);
        assert!(done.stderr.contains(message), "{args:?}: {}", done.stderr);
        let with_json: Vec<_> = args.iter().copied().chain(["--json"]).collect();
        let json = run(&with_json).json();
        assert_eq!(json["status"], "failed");
        assert!(json["error-desc"].as_str().unwrap().contains(message), "{json}");
    }
    dir.assert_holds(&["empty"]);
}

#[test]
fn a_full_disk_exits_with_1_and_leaves_no_file() {
    // A limit on file sizes, since /dev/full has no writable directory.
    let dir = TempDir::new();
    let out = dir.file("out");
    let args = ["--memory=4M", "--memory-out", text(&out)];
    let limited = |command: &mut Command| {
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            // SAFETY: `signal` is async-signal-safe and SIG_IGN is a valid disposition.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            // SAFETY: `setrlimit` reads the struct, alive during the call.
            match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes two async-signal-safe calls and does not allocate.
        unsafe { command.pre_exec(limit) };
    };
    let done = start_with(&args, limited).unwrap().wait(STUCK);
    done.expect(1);
    assert!(done.stderr.contains("--memory-out"), "{}", done.stderr);
    dir.assert_holds(&[]);
}

#[test]
fn the_memory_is_written_behind_a_link() {
    // To an existing file, to a missing file, and through a relative link to a link.
    let (dir, elsewhere) = (TempDir::new(), TempDir::new());
    fs::write(elsewhere.file("old"), "old").unwrap();
    symlink(elsewhere.file("old"), dir.file("to-old")).unwrap();
    symlink(elsewhere.file("new"), dir.file("to-new")).unwrap();
    symlink("link", dir.file("to-link")).unwrap();
    symlink(elsewhere.file("newer"), dir.file("link")).unwrap();
    for (link, target) in [("to-old", "old"), ("to-new", "new"), ("to-link", "newer")] {
        let out = dir.file(link);
        run(&["--memory=1M", "--memory-out", text(&out)]).expect(0);
        assert!(out.is_symlink(), "{link} was replaced");
        assert_eq!(fs::metadata(elsewhere.file(target)).unwrap().len(), 1 << 20, "{target}");
    }
    dir.assert_holds(&["link", "to-link", "to-new", "to-old"]);
    elsewhere.assert_holds(&["new", "newer", "old"]);
}

#[test]
fn an_irregular_target_is_refused_before_the_listen() {
    let dir = TempDir::new();
    let targets = [dir.file("fifo"), dir.file("socket"), lab::device(&dir), dir.file("directory")];
    lab::make_node(&targets[0], libc::S_IFIFO, 0).unwrap();
    let _socket = UnixListener::bind(&targets[1]).unwrap();
    fs::create_dir(&targets[3]).unwrap();
    let before = dir.names();
    let kinds = targets.clone().map(|target| fs::metadata(target).unwrap().file_type());
    for (target, kind) in targets.iter().zip(kinds) {
        let link = dir.file("link");
        symlink(target, &link).unwrap();
        for out in [target, &link] {
            for command in [&["--memory=1M"][..], &["receive", "--listen=127.0.0.1:0"]] {
                let args = [command, &["--memory-out", text(out)]].concat();
                let done = run(&args);
                done.expect(1);
                let named = format!("--memory-out {}", text(out));
                assert!(done.stderr.contains(&named), "{}", done.stderr);
                assert!(done.stderr.contains("not a regular file"), "{}", done.stderr);
                assert!(!done.stderr.contains("listening"), "{}", done.stderr);
            }
        }
        assert!(link.is_symlink() && fs::metadata(target).unwrap().file_type() == kind);
        fs::remove_file(link).unwrap();
    }
    let looping = dir.file("loop");
    symlink("loop", &looping).unwrap();
    for out in [format!("{}/new/", text(&dir.0)), text(&looping).to_string()] {
        let done = run(&["receive", "--listen=127.0.0.1:0", "--memory-out", &out]);
        done.expect(1);
        assert!(done.stderr.contains("--memory-out"), "{}", done.stderr);
    }
    fs::remove_file(looping).unwrap();
    assert_eq!(dir.names(), before, "no file was added or replaced");
}

#[test]
fn a_target_turned_fifo_is_not_replaced() {
    let dir = TempDir::new();
    let out = dir.file("out");
    let (receiver, target) = receive("127.0.0.1", &["--memory-out", text(&out)]);
    lab::make_node(&out, libc::S_IFIFO, 0).unwrap();
    let sender = start(&["send", &target, "--memory=1M", "--dirty-rate=0"]);
    for done in [sender.wait(STUCK), receiver.wait(STUCK)] {
        done.expect(1);
        assert!(done.stderr.contains("not a regular file"), "{}", done.stderr);
    }
    assert!(!fs::metadata(&out).unwrap().is_file());
    dir.assert_holds(&["out"]);
}

#[test]
fn an_idle_guest_needs_no_downtime_limit() {
    for device_state in ["0", "512K"] {
        let still = ["--dirty-rate=0", "--downtime-limit=0", "--device-state", device_state];
        let done = run(&[&["--memory=8M", "--json"][..], &still].concat());
        done.expect(0);
        // Round 0 and the last round.
        assert_eq!(done.json()["ram"]["dirty-sync-count"], 2, "{}", done.stdout);
    }
}

#[test]
fn unavailable_memory_is_named_by_its_option() {
    // More than the address space of a process.
    let done = run(&["--memory=99999T"]);
    done.expect(1);
    assert!(done.stderr.contains("--memory: "), "{}", done.stderr);
}

#[test]
fn the_help_and_the_error_show_one_form_of_a_listening_address() {
    const FORM: &str = "HOST:PORT, as in 0.0.0.0:4444 or [::]:4444";
    let help = run(&["receive", "--help"]);
    help.expect(0);
    assert!(help.stdout.contains(FORM), "{}", help.stdout);
    let done = run(&["receive", "--listen", "foo"]);
    done.expect(2);
    assert!(done.stderr.contains(FORM) && !done.stderr.contains("tcp:"), "{}", done.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_destination_sleeps_until_its_source_comes() {
    let (mut receiver, target) = receive("127.0.0.1", &[]);
    let before = receiver.sleeps();
    thread::sleep(Duration::from_millis(500));
    let sleeps = receiver.sleeps() - before;
    assert!(sleeps < 20, "{sleeps} looks for a source");
    start(&["send", &target, "--memory=1M", "--dirty-rate=0"]).wait(STUCK).expect(0);
    receiver.wait(STUCK).expect(0);
}

#[test]
fn an_invalid_command_line_exits_with_2() {
    for args in [
        &["--memory=0"][..],
        &["--memory=much"],
        &["--memory=1X"],
        &["--channels=0"],
        &["--channels=1000"],
        &["--zerocopy=maybe"],
        &["--no-such-option"],
        &["--address=nowhere"],
        &["--memory=4M", "--dirty-working-set=5M"],
        &["--memory=4M", "--memory-in=/dev/zero"],
        &["--memory=4M", "receive", "--listen=127.0.0.1:0"],
        &["--rate-limit=1"],
        &["--timeout=0"],
        &["send"],
        &["send", "tcp:nowhere"],
        &["send", "tcp:::1:4444"],
        &["receive"],
        &["receive", "--listen", "unix:/tmp/socket"],
    ] {
        let done = run(args);
        done.expect(2);
        assert!(done.stderr.contains("error:"), "{args:?}: {}", done.stderr);
        assert_eq!(done.stdout, "", "{args:?}");
    }
    let help = run(&["--help"]);
    help.expect(0);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("Exit codes:"));
}

#[test]
fn a_changed_byte_exits_with_3() {
    let dir = TempDir::new();
    let out = dir.file("out");
    let (receiver, target) = receive("127.0.0.1", &["--json", "--memory-out", text(&out)]);
    let relay = Relay::start(&target, |channel, position, byte| {
        *byte ^= u8::from(channel == 0 && position == 300_000);
    });
    let sender = start(&["send", &relay.target, "--memory=16M", "--dirty-rate=0", "--json"]);
    let (sent, received) = (sender.wait(STUCK), receiver.wait(STUCK));
    for done in [sent, received] {
        done.expect(3);
        let json = done.json();
        assert_eq!(json["verify"]["digest_match"], false);
        assert_eq!(json["status"], "failed");
        assert!(done.stderr.contains("do not start the guest"), "{}", done.stderr);
    }
    dir.assert_holds(&[]);
}

#[test]
fn an_honest_relay_causes_no_failure() {
    let (receiver, target) = receive("127.0.0.1", &[]);
    let relay = Relay::start(&target, |_, _, _| ());
    let sender = start(&["send", &relay.target, "--memory=16M", "--dirty-working-set=1M"]);
    sender.wait(STUCK).expect(0);
    receiver.wait(STUCK).expect(0);
}

/// A system-call filter hides the notifications, so that no release is proven.
#[cfg(all(target_os = "linux", target_endian = "little"))]
#[test]
fn an_unproven_release_exits_with_6() {
    // Few enough bytes for the memlock budget of an ordinary user: more would wait for
    // notifications. Dirtied pages, many on a slow machine, would add to them.
    let args = ["--memory=2M", "--dirty-rate=0", "--json", "--zerocopy=prefer"];
    let process = match start_with(&args, lab::without_notes) {
        Ok(process) => process,
        Err(e) => {
            println!("SKIPPED an_unproven_release_exits_with_6: no seccomp: {e}");
            return;
        }
    };
    let done = process.wait(STUCK);
    done.expect(6);
    assert!(done.stderr.contains("unaccounted for"), "{}", done.stderr);
    let json = done.json();
    assert_eq!(json["verify"]["digest_match"], true, "the migration itself went well");
    // Slots may still be Free, on new pages.
    assert!(json["zerocopy"]["unreleased"].as_u64() > Some(0), "{json}");
}

/// A system-call filter answers EOPNOTSUPP to SO_ZEROCOPY, like a kernel without zero copy.
#[cfg(all(target_os = "linux", target_endian = "little"))]
#[test]
fn a_refusal_of_required_zero_copy_exits_with_4() {
    let process = match start_with(&["--memory=8M", "--zerocopy=require"], lab::without_zerocopy) {
        Ok(process) => process,
        Err(e) => {
            println!("SKIPPED a_refusal_of_required_zero_copy_exits_with_4: no seccomp: {e}");
            return;
        }
    };
    let done = process.wait(STUCK);
    done.expect(4);
    assert!(done.stderr.contains("SO_ZEROCOPY"), "{}", done.stderr);
    let done = start_with(&["--memory=8M", "--json"], lab::without_zerocopy).unwrap().wait(STUCK);
    done.expect(0);
    assert_eq!(done.json()["zerocopy"]["available"], false);
    assert_eq!(done.json()["zerocopy"]["sends_zero_copy"], 0);
}

#[test]
fn a_guest_faster_than_the_network_exits_with_5() {
    let fast = ["--dirty-rate=400M", "--rate-limit=20M", "--downtime-limit=10"];
    for limit in [["--max-rounds", "2"], ["--timeout", "1"]] {
        let (receiver, target) = receive("127.0.0.1", &[]);
        let mut args = vec!["send", &target, "--memory=16M", "--json"];
        args.extend(fast);
        args.extend(limit);
        let sender = start(&args);
        let (sent, received) = (sender.wait(STUCK), receiver.wait(STUCK));
        sent.expect(5);
        assert!(sent.stderr.contains("not converged"), "{}", sent.stderr);
        assert_eq!(sent.json()["status"], "failed");
        received.expect(5);
        assert!(received.stderr.contains("the source gave up: not converged"));
    }
}

#[test]
fn a_killed_destination_ends_the_source_with_1() {
    let (mut receiver, target) = receive("127.0.0.1", &[]);
    let mut sender = start_slow(&target, &[]);
    sender.until("connected");
    thread::sleep(Duration::from_millis(300));
    receiver.signal(libc::SIGKILL);
    let done = sender.wait(STUCK);
    done.expect(1);
    assert!(
        done.stderr.contains("the destination closed the connection during round 0 (")
            && done.stderr.contains("was it killed?"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_killed_source_ends_the_destination_with_1() {
    let dir = TempDir::new();
    let out = dir.file("out");
    let (receiver, target) = receive("127.0.0.1", &["--memory-out", text(&out)]);
    let mut sender = start_slow(&target, &[]);
    sender.until("connected");
    thread::sleep(Duration::from_millis(300));
    sender.signal(libc::SIGKILL);
    let done = receiver.wait(STUCK);
    done.expect(1);
    assert!(
        done.stderr.contains("the source closed the connection during round 0")
            && done.stderr.contains("was it killed?"),
        "{}",
        done.stderr
    );
    dir.assert_holds(&[]);
}

#[test]
fn a_stopped_end_makes_its_peer_give_up() {
    for stop_the_source in [false, true] {
        let (mut receiver, target) = receive("127.0.0.1", &["--stall-timeout=3"]);
        let mut sender = start_slow(&target, &["--stall-timeout=3"]);
        sender.until("connected");
        let stopped = if stop_the_source { &mut sender } else { &mut receiver };
        stopped.signal(libc::SIGSTOP);
        let waiting = if stop_the_source { receiver } else { sender };
        let done = waiting.wait(STUCK);
        done.expect(1);
        assert!(done.stderr.contains("is it stopped, or the network down?"), "{}", done.stderr);
    }
}

#[test]
fn an_interrupt_ends_both_sides_in_order() {
    let dir = TempDir::new();
    let out = dir.file("out");
    let (receiver, target) = receive("127.0.0.1", &["--memory-out", text(&out)]);
    let mut sender = start_slow(&target, &[]);
    sender.until("connected");
    sender.signal(libc::SIGINT);
    let done = sender.wait(STUCK);
    done.expect(1);
    assert!(done.stderr.contains("interrupted"), "{}", done.stderr);
    let done = receiver.wait(STUCK);
    done.expect(1);
    assert!(done.stderr.contains("the source gave up: interrupted"), "{}", done.stderr);
    dir.assert_holds(&[]);

    let (mut receiver, _) = receive("127.0.0.1", &[]);
    receiver.signal(libc::SIGTERM);
    receiver.wait(STUCK).expect(1);
}

#[test]
fn an_image_truncated_meanwhile_is_a_clear_failure() {
    for dirty_rate in ["0", "100M"] {
        let dir = TempDir::new();
        let image = dir.file("image");
        fs::write(&image, noise(64 << 20)).unwrap();
        let mut process = start(&[
            "--memory-in",
            text(&image),
            "--rate-limit=10M",
            "--dirty-working-set=64M",
            "--dirty-rate",
            dirty_rate,
        ]);
        process.until("connected");
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(4096).unwrap();
        let done = process.wait(STUCK);
        done.expect(1);
        assert!(done.stderr.contains("truncated"), "{}", done.stderr);
    }
}
