//! The program: see the library beside it.

#![allow(clippy::print_stderr, reason = "a program: its log is standard error")]

use std::{
    fs::File,
    io::{self, Read, stdin},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use replication::{
    open,
    primary::{self, Primary},
    replica,
    source::Generator,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

/// Replicates a stream of blocks to many replicas: each block is one buffer, sent without a copy.
///
/// The end of the input, SIGTERM and SIGINT end the stream in order; a second signal ends the wait.
#[derive(Parser)]
#[command(version)]
enum Command {
    Primary(primary::Config),
    Replica(replica::Config),
}

fn main() -> ExitCode {
    let command = Command::parse();
    // A connection takes two descriptors, and most shells allow 1,024.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let result = match command {
        Command::Primary(config) => run_primary(config),
        Command::Replica(config) => replica::run(&config).map(|end| {
            eprintln!("replica {}: complete, {} blocks", config.id, end.blocks);
            true
        }),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns `true` if all was replicated.
#[tokio::main]
async fn run_primary(config: primary::Config) -> io::Result<bool> {
    let input: Box<dyn Read + Send> = match (&config.input, config.generate) {
        (Some(path), _) => Box::new(open(File::options().read(true), path)?),
        (None, Some(len)) => Box::new(Generator::new(len)),
        (None, None) => Box::new(stdin()),
    };
    let stop = Arc::new(Notify::new());
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signal, stop) = (signal(kind)?, Arc::clone(&stop));
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                stop.notify_one();
            }
        });
    }
    let primary = Primary::bind(config).await?;
    eprintln!("replicas: {}", primary.address()?);
    if let Some(tail) = primary.tail_address()? {
        eprintln!("tail: {tail}");
    }
    let report = primary.run(input, &stop).await;
    eprintln!("{report}");
    Ok(report.is_complete())
}
