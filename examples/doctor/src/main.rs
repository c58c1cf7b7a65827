//! The program: see the library beside it.

use std::process::ExitCode;

use clap::Parser;

/// Tells whether zero copy works here, and what to change.
#[derive(Parser)]
#[command(name = "pinbuf-doctor", version)]
struct Cli {
    #[command(flatten)]
    args: pinbuf_doctor::Args,
}

fn main() -> ExitCode {
    Cli::parse().args.run()
}
