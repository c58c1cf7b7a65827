//! The command line.

use std::time::Duration;

use clap::Parser;

const AFTER: &str = "\
Prints a line a minute and a summary. As root it also plays in network namespaces of its own, where \
packets are lost. Ctrl-C ends the run in order, a second one at once.

Exit codes:
  0  nothing was found
  1  a fault was found; the seed is printed
  2  the command line makes no sense";

/// Loads the library with all features at random, and checks every byte and every slot.
#[derive(Debug, Parser)]
#[command(name = "soak", version, after_help = AFTER)]
pub(crate) struct Cli {
    /// Run for this many minutes; fractions are allowed.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_minutes)]
    pub(crate) minutes: Duration,
    /// Repeat the choices of the run with this seed. Threads and the kernel still vary.
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(minutes * 60.0) {
        Ok(time) if !time.is_zero() && time <= Duration::from_secs(366 * 86_400) => Ok(time),
        _ => Err("between a second and a year".to_owned()),
    }
}
