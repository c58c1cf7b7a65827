//! Migrates the memory of a make-believe guest over TCP, in place and with `MSG_ZEROCOPY`.
//!
//! `cargo run --release -p migration_sender` plays both ends over loopback; `--help` has the
//! rest. What the parts are:
//!
//! | module        | contents                                                            |
//! |---------------|---------------------------------------------------------------------|
//! | `cli`         | the command line                                                    |
//! | `protocol`    | the wire format, and the order of a page's copies                   |
//! | `source`      | rounds, convergence, the threads of the channels                    |
//! | `destination` | applying rounds, verification, `--memory-out`                       |
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
pub mod protocol;
pub mod report;
pub mod signals;
pub mod source;
pub mod sys;
pub mod track;

use std::{
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    process::ExitCode,
    thread,
};

use clap::Parser;

use crate::{
    cli::{BothArgs, Cli, Command, CommonArgs, ReceiveArgs, SendArgs},
    destination::output::OutputFile,
    failure::{Code, Failure},
    hypervisor::guest,
    report::{Progress, Report},
    signals::Stop,
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
        let (listener, address) = listen((args.address, 0).into(), args.address)?;
        Ok((output, memory, listener, address))
    };
    let (output, memory, listener, address) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let (progress, silent) = (Progress::new(args.common.quiet), Progress::new(true));
    let (stop, stop_destination) = (Stop::default(), Stop::default());
    let config = destination_config(output, u64::MAX, &args.common, &stop_destination, &silent);
    let plan = source::Plan {
        targets: &[address],
        args: &args.source,
        common: &args.common,
        stop: &stop,
        progress: &progress,
    };
    let ((report, outcome), destination) = thread::scope(|scope| {
        let destination = scope.spawn(|| destination::serve(&listener, &config).1);
        let source = source::migrate(&plan, memory);
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
        let memory = guest::memory(&args.source)?;
        Ok((memory, resolve(&args.target)?))
    };
    let (memory, targets) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let (stop, progress) = (Stop::default(), Progress::new(args.common.quiet));
    let plan = source::Plan {
        targets: &targets,
        args: &args.source,
        common: &args.common,
        stop: &stop,
        progress: &progress,
    };
    source::migrate(&plan, memory)
}

fn receive(args: &ReceiveArgs) -> Outcome {
    let prepare = || {
        let output = args.memory_out.as_deref().map(OutputFile::new).transpose()?;
        let addresses = resolve(&args.listen)?;
        let first = addresses.first().copied().ok_or_else(|| no_address(&args.listen))?;
        Ok((output, listen(first, &args.listen)?))
    };
    let (output, (listener, address)) = match prepare() {
        Ok(prepared) => prepared,
        Err(failure) => return failed(failure),
    };
    let (stop, progress) = (Stop::default(), Progress::new(args.common.quiet));
    // With an open port even under --quiet: the user could not know the number otherwise.
    if !args.common.quiet || args.listen.ends_with(":0") {
        report::say(&format!("listening on tcp:{address}"));
    }
    let config = destination_config(output, args.max_memory, &args.common, &stop, &progress);
    destination::serve(&listener, &config)
}

fn destination_config<'a>(
    output: Option<OutputFile>,
    max_memory: u64,
    common: &CommonArgs,
    stop: &'a Stop,
    progress: &'a Progress,
) -> destination::Config<'a> {
    destination::Config {
        output,
        max_memory,
        timeout: common.timeout,
        stall_timeout: common.stall_timeout,
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
