//! Migrates a guest over TCP, a QEMU or a make-believe one, its memory in place and with
//! `MSG_ZEROCOPY`.
//!
//! `cargo run --release -p migration_sender` plays both ends over loopback; `--help` has the
//! rest. What the parts are:
//!
//! | module        | contents                                                            |
//! |---------------|---------------------------------------------------------------------|
//! | `cli`         | the command line                                                    |
//! | `wire`        | the wire format (`PROTOCOL.md`), and the order of a page's copies   |
//! | `source`      | surveys, rounds, convergence, the hand-over                         |
//! | `destination` | applying rounds, verification, `--memory-out`, the start            |
//! | `hypervisor`  | the machine at either end: a make-believe guest or a QEMU           |
//! | `track`       | finding the pages that a guest has written                          |
//! | `memory`      | the guest memory of both ends (unsafe code)                         |
//! | `bitmap`      | the dirty bitmap                                                    |
//! | `report`      | progress, table, JSON                                               |
//! | `signals`     | SIGINT, SIGTERM, and SIGBUS of a truncated image (unsafe code)      |
//! | `clock`       | CPU time (unsafe code)                                              |
//! | `sys`         | system calls on a hypervisor's process and memory (unsafe code)     |
//! | `failure`     | exit codes                                                          |

#![allow(clippy::disallowed_types, reason = "the library's sync shim is private to it")]
#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::len_without_is_empty,
    reason = "a library for this program, its tests and its benches alone"
)]

pub mod bitmap;
pub mod cli;
pub mod clock;
pub mod destination;
pub mod failure;
pub mod hypervisor;
pub mod memory;
pub mod report;
pub mod signals;
pub mod source;
pub mod sys;
pub mod track;
pub mod wire;

use std::{
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::Path,
    process::ExitCode,
    thread,
};

use clap::Parser;

use crate::{
    cli::{BothArgs, Cli, Command, CommonArgs, ReceiveArgs, SendArgs, SourceArgs},
    destination::{Host, output::OutputFile},
    failure::{Code, Failure},
    hypervisor::{SourceMachine, guest, memory::Access, qemu::Qemu},
    memory::GuestMemory,
    report::{Progress, Report},
    signals::Stop,
    source::{Guest, survey::Watch},
    wire::{MAX_DEVICE_STATE, Tls},
};

/// Runs the command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    signals::install();
    let (json, (report, outcome)) = match &cli.command {
        None => (cli.both.common.json, both(&cli.both)),
        Some(Command::Send(args)) => (args.common.json, send(args)),
        Some(Command::Receive(args)) => (args.common.json, receive(args)),
        Some(Command::Doctor(args)) => return args.run(),
    };
    report::print(&report, outcome.as_ref().err(), json);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.code as u8),
    }
}

type Outcome = (Report, Result<(), Failure>);

fn both(args: &BothArgs) -> Outcome {
    let prepare = || {
        let output = args.memory_out.as_deref().map(OutputFile::new).transpose()?;
        let memory = guest::memory(&args.source)?;
        let tls = tls(&args.common, &args.address.to_string())?;
        let (listener, address) = listen((args.address, 0).into(), args.address)?;
        Ok((output, memory, tls, listener, address))
    };
    let (output, memory, tls, listener, address) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let guest = match guest::start(&args.source, memory) {
        Ok(guest) => guest,
        Err(failure) => return failed(failure),
    };
    let (progress, silent) = (Progress::new(args.common.quiet), Progress::new(true));
    let (stop, stop_destination) = (Stop::default(), Stop::default());
    let config =
        destination_config(u64::MAX, &args.common, tls.as_ref(), &stop_destination, &silent);
    let targets = [address];
    let plan = plan(&targets, &args.source, &args.common, tls.as_ref(), &stop, &progress);
    let ((report, outcome), destination) = thread::scope(|scope| {
        let host = Host::Store(output);
        let destination = scope.spawn(|| destination::serve(&listener, &config, host).1);
        let source = source::migrate(&plan, guest);
        if source.1.is_err() {
            // The destination may still wait for a connection.
            stop_destination.request();
        }
        (source, destination.join())
    });
    let destination = destination
        .unwrap_or_else(|_| Err(Failure::new(Code::Io, "the destination's thread died")));
    let outcome = match (outcome, destination) {
        (Err(source), destination) => Err(source.explaining(destination.err())),
        (Ok(()), destination) => destination,
    };
    (report, outcome)
}

fn send(args: &SendArgs) -> Outcome {
    let prepare = || {
        let host = args.target.rsplit_once(':').map_or("", |(host, _)| host);
        let tls = tls(&args.common, host.trim_matches(['[', ']']))?;
        let targets = resolve(&args.target)?;
        let (guest, track) = match &args.qmp {
            Some(path) => qemu_source(path, args)?,
            None => (guest::start(&args.source, guest::memory(&args.source)?)?, None),
        };
        Ok((guest, track, tls, targets))
    };
    let (guest, track, tls, targets) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let (stop, progress) = (Stop::default(), Progress::new(args.common.quiet));
    if let Some((method, reason)) = &track {
        progress.line(&format!("changed pages by {method}: {reason}"));
    }
    let plan = plan(&targets, &args.source, &args.common, tls.as_ref(), &stop, &progress);
    let (report, outcome) = source::migrate(&plan, guest);
    (Report { track, ..report }, outcome)
}

/// The guest of a QEMU, with the method of tracking and its reason.
fn qemu_source(path: &Path, args: &SendArgs) -> Result<(Guest, Option<(String, String)>), Failure> {
    let mut qemu = Qemu::source(path, args.common.stall_timeout, MAX_DEVICE_STATE)?;
    let prepare = |qemu: &mut Qemu| {
        let writers = qemu.untracked_writers()?;
        let memory = GuestMemory::of_qemu(qemu.ram(), Access::Read);
        let memory = memory.map_err(|e| Failure::io("mapping the memory of QEMU", &e))?;
        let choice = track::choose(args.track, qemu.ram(), &writers)?;
        let chosen = (choice.method.to_string(), choice.reason);
        Ok((memory, choice.tracker.map_or(Watch::Digests, Watch::Tracker), chosen))
    };
    match prepare(&mut qemu) {
        Ok((memory, watch, chosen)) => {
            Ok((Guest::of_machine(memory, Box::new(qemu), watch), Some(chosen)))
        }
        Err(failure) => {
            // Takes QEMU's settings back.
            let _ = qemu.resume();
            Err(failure)
        }
    }
}

fn receive(args: &ReceiveArgs) -> Outcome {
    let prepare = || {
        let host = match &args.qmp {
            None => Host::Store(args.memory_out.as_deref().map(OutputFile::new).transpose()?),
            Some(path) => {
                let qemu = Qemu::destination(path, args.common.stall_timeout, MAX_DEVICE_STATE)?;
                let memory = GuestMemory::of_qemu(qemu.ram(), Access::Write);
                let memory = memory.map_err(|e| Failure::io("mapping the memory of QEMU", &e))?;
                Host::Machine(memory, Box::new(qemu))
            }
        };
        let tls = tls(&args.common, "localhost")?;
        let addresses = resolve(&args.listen)?;
        let first = addresses.first().copied().ok_or_else(|| no_address(&args.listen))?;
        Ok((host, tls, listen(first, &args.listen)?))
    };
    let (host, tls, (listener, address)) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let (stop, progress) = (Stop::default(), Progress::new(args.common.quiet));
    // With an open port even under --quiet: the user could not know the number otherwise.
    if !args.common.quiet || args.listen.ends_with(":0") {
        report::say(&format!("listening on tcp:{address}"));
    }
    let config = destination_config(args.max_memory, &args.common, tls.as_ref(), &stop, &progress);
    destination::serve(&listener, &config, host)
}

/// The TLS of the arguments. `host` is the destination's name, unless the arguments have another.
fn tls(common: &CommonArgs, host: &str) -> Result<Option<Tls>, Failure> {
    let name = common.tls_name.as_deref().unwrap_or(host);
    common.tls.as_deref().map(|folder| Tls::from_folder(folder, name)).transpose()
}

fn plan<'a>(
    targets: &'a [SocketAddr],
    args: &'a SourceArgs,
    common: &'a CommonArgs,
    tls: Option<&'a Tls>,
    stop: &'a Stop,
    progress: &'a Progress,
) -> source::Plan<'a> {
    source::Plan { targets, args, common, tls, stop, progress, digests_at_source: false }
}

fn destination_config<'a>(
    max_memory: u64,
    common: &CommonArgs,
    tls: Option<&'a Tls>,
    stop: &'a Stop,
    progress: &'a Progress,
) -> destination::Config<'a> {
    destination::Config {
        max_memory,
        timeout: common.timeout,
        stall_timeout: common.stall_timeout,
        tls,
        stop,
        progress,
    }
}

fn failed(failure: Failure) -> Outcome {
    let report = Report { error_desc: Some(failure.message.clone()), ..Report::default() };
    (report, Err(failure))
}

fn listen(
    address: SocketAddr,
    asked: impl std::fmt::Display,
) -> Result<(TcpListener, SocketAddr), Failure> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    open().map_err(|e| Failure::io(format_args!("cannot listen on {asked}"), &e))
}

fn resolve(target: &str) -> Result<Vec<SocketAddr>, Failure> {
    let addresses: Vec<_> = target
        .to_socket_addrs()
        .map_err(|e| Failure::io(format_args!("cannot resolve {target}"), &e))?
        .collect();
    if addresses.is_empty() { Err(no_address(target)) } else { Ok(addresses) }
}

fn no_address(target: &str) -> Failure {
    Failure::new(Code::Io, format!("{target} has no address"))
}
