//! Moves between machines of the test: guests that write meanwhile, and the death of everything at
//! every step.

#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]
#![cfg(target_os = "linux")]

mod machine;
mod network;

use std::{
    io::Write,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use clap::Parser;
use machine::{Destination, Memory, Source, Steps, mapped};
use migration_sender::{
    cli::{Cli, Command, SendArgs},
    destination::{self, Host},
    failure::{Code, Failure},
    hypervisor::memory::Access,
    memory::mix,
    report::{Progress, Report},
    signals::Stop,
    source::{self, Guest, survey::Watch},
    wire::{ANSWERS, DigestKind, Header, Layout, Offer, PAGE, Run, Secret},
};
use network::{Fate, relay};

/// The end of a move.
struct End {
    report: Report,
    source: Result<(), Failure>,
    destination: Result<(), Failure>,
    is_equal: bool,
}

/// Moves a guest. `road` makes the source's target of the destination's address.
fn moved(
    more: &[&str],
    steps: &Steps,
    digests_at_source: bool,
    road: impl FnOnce(SocketAddr, Arc<Stop>) -> SocketAddr,
) -> End {
    let args = arguments(more);
    let (near, far) = (Memory::new(), Memory::new());
    let machine = Source::start(&near, steps.clone());
    let watch = Watch::Digests;
    let guest = Guest::of_machine(mapped(&near, Access::Read), Box::new(machine), watch);
    let host = Host::Machine(mapped(&far, Access::Write), Box::new(Destination(steps.clone())));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (progress, stop, other) = (Progress::new(true), Arc::new(Stop::default()), Stop::default());
    let target = [road(listener.local_addr().unwrap(), Arc::clone(&stop))];
    let config = destination::Config {
        max_memory: 0,
        timeout: args.common.timeout,
        stall_timeout: args.common.stall_timeout,
        tls: None,
        stop: &other,
        progress: &progress,
    };
    let plan = source::Plan {
        targets: &target,
        args: &args.source,
        common: &args.common,
        tls: None,
        stop: &stop,
        progress: &progress,
        digests_at_source,
    };
    let ((report, source), destination) = thread::scope(|scope| {
        let destination = scope.spawn(|| destination::serve(&listener, &config, host).1);
        let source = source::migrate(&plan, guest);
        if source.1.is_err() {
            // The destination may still wait for a connection.
            other.request();
        }
        (source, destination.join().unwrap())
    });
    // The guest at the source ended with its machine. Stopped, it wrote nothing more.
    let is_equal = near.bytes() == far.bytes();
    End { report, source, destination, is_equal }
}

fn arguments(more: &[&str]) -> SendArgs {
    let fixed = ["migration_sender", "send", "tcp:127.0.0.1:1", "--zerocopy=prefer", "--qmp=none"];
    let has_limit = more.iter().any(|option| option.starts_with("--downtime-limit"));
    // A guest that never waits never converges: the second round is the last.
    let limit: &[&str] = if has_limit { &[] } else { &["--downtime-limit=100000"] };
    let all = fixed.iter().chain(&["--stall-timeout=3"]).chain(limit).chain(more);
    match Cli::parse_from(all).command {
        Some(Command::Send(args)) => args,
        _ => unreachable!("the arguments of send"),
    }
}

fn direct(address: SocketAddr, _: Arc<Stop>) -> SocketAddr {
    address
}

#[test]
fn a_guest_that_writes_arrives_without_a_wrong_byte() {
    for run in 0..20 {
        let steps = Steps::default();
        let channels = ["--channels=1", "--channels=2", "--channels=4"][run % 3];
        let digest = ["--digest=xxh3", "--digest=blake3"][run % 2];
        let verify: &[&str] = if run % 4 == 0 { &["--verify"] } else { &[] };
        let end = moved(&[&[channels, digest], verify].concat(), &steps, false, direct);
        assert_eq!((end.source, end.destination), (Ok(()), Ok(())), "run {run}");
        assert!(end.is_equal, "run {run}: wrong bytes");
        assert!(steps.destination_runs() && !steps.source_runs());
        let ram = &end.report.ram;
        assert!(ram.again > 0 && ram.duplicate > 0, "{ram:?}");
        // The holes are never sent, and the guest writes a part of the rest.
        assert!(ram.normal_bytes < 3 * machine::LEN as u64 / 2, "{ram:?}");
        assert_eq!(end.report.verify.is_some(), !verify.is_empty());
    }
}

/// The control of the test before: the digests belong to the destination.
#[test]
fn digests_of_the_source_leave_wrong_bytes() {
    let is_wrong = |_| !moved(&[], &Steps::default(), true, direct).is_equal;
    assert!((0..20).any(is_wrong), "the test before does not see wrong bytes");
}

#[test]
fn a_wrong_byte_of_an_earlier_round_is_sent_again() {
    let steps = Steps::default();
    let end = moved(&[], &steps, false, |to, stop| relay(to, "Pages", Fate::Change, stop));
    assert_eq!((end.source, end.destination), (Ok(()), Ok(())));
    assert!(end.is_equal);
}

#[test]
fn at_most_one_side_runs_the_guest_after_an_end_of_the_network() {
    const FRAMES: [&str; 12] = [
        "Hello",
        "Welcome",
        "Pages",
        "Zeros",
        "Digests",
        "RoundEnd",
        "RoundApplied",
        "DeviceState",
        "Loaded",
        "Go",
        "Running",
        "Goodbye",
    ];
    let fates = [Fate::EndBefore, Fate::EndBehind, Fate::Silence];
    let rows: Vec<_> = FRAMES.iter().flat_map(|frame| fates.map(|fate| (*frame, fate))).collect();
    // Silence takes seconds to be noticed, so the rows share them.
    let check = |(frame, fate): (&'static str, Fate)| {
        let steps = Steps::default();
        let end = moved(&[], &steps, false, |to, stop| relay(to, frame, fate, stop));
        let row = format!("{fate:?} of {frame}: {:?}, {:?}", end.source, end.destination);
        let (source, destination) = (steps.source_runs(), steps.destination_runs());
        assert_eq!(end.destination.is_ok(), destination, "{row}");
        match &end.source {
            Ok(()) => assert!(destination && !source, "{row}"),
            Err(failure) if failure.code == Code::Undecided => {
                assert!(!source && failure.message.contains("query-status"), "{row}");
            }
            Err(_) => assert!(source && !destination, "{row}"),
        }
        // Lost is what is lost, and not more.
        let is_undecided =
            end.source.as_ref().is_err_and(|failure| failure.code == Code::Undecided);
        match (frame, fate) {
            ("Go" | "Running", Fate::EndBefore | Fate::Silence) | ("Go", _) => {
                assert!(is_undecided, "{row}");
                assert_eq!(destination, frame == "Running" || fate == Fate::EndBehind, "{row}");
            }
            ("Loaded" | "Running", Fate::EndBehind) => {}
            ("Goodbye", _) => assert!(end.source.is_ok(), "{row}"),
            _ => assert!(end.source.is_err() && !is_undecided, "{row}"),
        }
        assert!(!destination || end.is_equal, "{row}");
    };
    for some in rows.chunks(6) {
        thread::scope(|scope| some.iter().for_each(|one| drop(scope.spawn(|| check(*one)))));
    }
}

#[test]
fn a_failing_machine_leaves_the_guest_where_it_is() {
    for step in ["stop", "save", "load"] {
        let steps = Steps::failing(step);
        let end = moved(&[], &steps, false, direct);
        let failure = end.source.unwrap_err();
        assert!(failure.message.contains(&format!("lets {step} fail")), "{step}: {failure}");
        assert!(end.destination.is_err());
        assert!(steps.source_runs() && !steps.destination_runs(), "{step}");
    }
    let steps = Steps::failing("save resume");
    let failure = moved(&[], &steps, false, direct).source.unwrap_err();
    assert!(failure.message.contains("could not be resumed here"), "{failure}");
    // The guest was given away: only a person can know more.
    let steps = Steps::failing("start");
    let end = moved(&[], &steps, false, direct);
    assert_eq!(end.source.unwrap_err().code, Code::Undecided);
    assert_eq!(end.destination.unwrap_err().code, Code::Undecided);
    assert!(!steps.source_runs() && !steps.destination_runs());
}

#[test]
fn a_cancelled_guest_goes_on_at_the_source() {
    for frame in ["Welcome", "Digests", "RoundApplied", "DeviceState"] {
        let steps = Steps::default();
        let end = moved(&["--max-bandwidth=16M"], &steps, false, |to, stop| {
            relay(to, frame, Fate::Cancel, stop)
        });
        assert!(end.source.is_err() && end.destination.is_err(), "{frame}");
        assert!(steps.source_runs() && !steps.destination_runs(), "{frame}");
    }
    // Too late: the guest has been handed over.
    let steps = Steps::default();
    let end = moved(&[], &steps, false, |to, stop| relay(to, "Go", Fate::Cancel, stop));
    assert_eq!(end.source, Ok(()));
    assert!(steps.destination_runs());
}

#[test]
fn a_downtime_that_is_too_long_is_refused() {
    let steps = Steps::default();
    let end = moved(&["--downtime-limit=1", "--max-rounds=3"], &steps, false, direct);
    let failure = end.source.unwrap_err();
    assert_eq!(failure.code, Code::NotConverged, "{failure}");
    assert!(end.report.expected_downtime > Some(1));
    assert!(steps.source_runs() && !steps.destination_runs());
}

/// A whole conversation of a source with one channel: pages, zeros, device state, `Go`.
fn conversation(offer: &Offer) -> Vec<Vec<u8>> {
    let runs = |list: &[Run]| list.iter().flat_map(|run| run.encode()).collect::<Vec<_>>();
    let encoded = offer.encode();
    let (abilities, bytes) = (offer.abilities(), encoded.len() as u64);
    let hello = Header::Hello { session: 1, abilities, channel: 0, channels: 1, bytes };
    let pages = [Run { offset: 0, len: 2 * PAGE }, Run { offset: 3 * PAGE, len: PAGE }];
    let zeros = [Run { offset: 8 * PAGE, len: 8 * PAGE }];
    let state = machine::STATE;
    [
        (hello, encoded),
        (
            Header::Pages { round: 0, runs: 2, bytes: 3 * PAGE as u64 },
            [runs(&pages), vec![7; 3 * PAGE]].concat(),
        ),
        (Header::Zeros { round: 0, runs: 1, bytes: 8 * PAGE as u64 }, runs(&zeros)),
        (Header::KeepAlive, vec![]),
        (Header::DeviceState { bytes: state.len() as u64 }, state.to_vec()),
        (Header::RoundEnd { round: 0, last: true }, vec![]),
        (Header::Go, vec![]),
        (Header::Goodbye { code: 0, bytes: 0 }, vec![]),
    ]
    .map(|(header, payload)| [&header.encode()[..], &payload].concat())
    .to_vec()
}

/// Streams with damaged bytes, lost, repeated and exchanged frames, and early ends.
#[test]
fn a_destination_survives_damaged_streams() {
    let layout = Layout::new([("m0".to_string(), machine::LEN)]).unwrap();
    let secret = Secret::from_bytes([5; Secret::SIZE]);
    let offer = Offer {
        digest: DigestKind::Xxh3,
        page_digests: true,
        verify: false,
        qemu: true,
        secret,
        layout,
    };
    let mut runs = 0;
    for seed in 0..1000_u64 {
        let mut random = seed;
        let mut next = |limit: usize| {
            random = mix(random);
            random as usize % limit
        };
        let mut frames = conversation(&offer);
        // Seed 0 is the whole conversation.
        for _ in 0..if seed == 0 { 0 } else { 1 + next(3) } {
            let (at, other) = (next(frames.len()), next(frames.len()));
            match next(5) {
                0 => frames.swap(at, other),
                1 => frames.insert(at, frames[other].clone()),
                2 if frames.len() > 1 => drop(frames.remove(at)),
                3 => {
                    let len = next(frames[at].len() + 1);
                    frames[at].truncate(len);
                }
                _ if frames[at].is_empty() => {}
                _ => {
                    // Mostly in the header.
                    let len = frames[at].len();
                    let place = if next(4) == 0 { next(len) } else { next(len.min(80)) };
                    frames[at][place] ^= 1 << next(8);
                }
            }
        }
        let (steps, far) = (Steps::default(), Memory::new());
        let host = Host::Machine(mapped(&far, Access::Write), Box::new(Destination(steps.clone())));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, progress) = (Stop::default(), Progress::new(true));
        let second = Duration::from_secs(1);
        let config = destination::Config {
            max_memory: 0,
            timeout: 60 * second,
            stall_timeout: second,
            tls: None,
            stop: &stop,
            progress: &progress,
        };
        let outcome = thread::scope(|scope| {
            let serving = scope.spawn(|| destination::serve(&listener, &config, host).1);
            let mut channel = TcpStream::connect(address).unwrap();
            let mut answers = TcpStream::connect(address).unwrap();
            let greeting = Header::Hello {
                session: 1,
                abilities: offer.abilities(),
                channel: ANSWERS,
                channels: 1,
                bytes: 0,
            };
            let _ = answers.write_all(&greeting.encode());
            let _ = answers.shutdown(Shutdown::Write);
            let _ = channel.write_all(&frames.concat());
            let _ = channel.shutdown(Shutdown::Write);
            let outcome = serving.join();
            drop((channel, answers));
            outcome
        });
        let outcome = outcome.unwrap_or_else(|_| panic!("a panic, seed {seed}"));
        assert_eq!(outcome.is_ok(), steps.destination_runs(), "seed {seed}: {outcome:?}");
        runs += usize::from(outcome.is_ok());
        assert!(seed > 0 || outcome.is_ok(), "{outcome:?}");
    }
    assert!(runs < 500, "most damages are noticed");
}
