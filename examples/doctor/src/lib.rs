//! Tells whether zero copy works on this machine and on the route to a peer, and what to change.

use std::{
    fmt,
    io::{Write, stdout},
    net::{SocketAddr, ToSocketAddrs},
    process::ExitCode,
};

use pinbuf::probe::{Check, Environment, RouteError, Status};
use serde::Serialize;

/// The exit code for failing zero copy.
const NOT_MET: u8 = 4;

/// The command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also check the route to this host: HOST, HOST:PORT or an IP address.
    #[arg(long, value_name = "ADDR")]
    peer: Option<String>,
    /// Exit with code 4 for a warning too.
    #[arg(long)]
    strict: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs the checks and prints the findings.
    pub fn run(&self) -> ExitCode {
        let mut lines: Vec<_> = Environment::probe().checks().into_iter().map(Line::from).collect();
        lines.extend(self.peer.iter().flat_map(|peer| routes(peer)));
        let findings = Findings::new(lines);
        let text = match self.json {
            true => serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n",
            false => findings.to_string(),
        };
        let _ = stdout().write_all(text.as_bytes());
        match findings.is_met(self.strict) {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(NOT_MET),
        }
    }
}

#[derive(Debug, Serialize)]
struct Findings {
    #[serde(serialize_with = "lowercase")]
    status: Status,
    checks: Vec<Line>,
}

/// A [`Check`] of the library, or one of the doctor's.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    #[serde(serialize_with = "lowercase")]
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Findings {
    fn new(checks: Vec<Line>) -> Self {
        let status = checks.iter().map(|line| line.status).max().unwrap_or(Status::Pass);
        Self { status, checks }
    }

    fn is_met(&self, strict: bool) -> bool {
        self.status < if strict { Status::Warn } else { Status::Fail }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { name, status, found, advice } in &self.checks {
            writeln!(f, "{status:<7} {name}: {found}")?;
            if let Some(advice) = advice {
                writeln!(f, "        {advice}")?;
            }
        }
        Ok(())
    }
}

impl From<Check> for Line {
    fn from(check: Check) -> Self {
        let Check { name, status, found, advice, .. } = check;
        Self { name, status, found, advice }
    }
}

/// The routes to the addresses of the peer.
fn routes(peer: &str) -> Vec<Line> {
    let line = |status, found, advice: &str| Line {
        name: "route",
        status,
        found,
        advice: Some(advice.to_owned()),
    };
    let addresses = match resolve(peer) {
        Ok(addresses) => addresses,
        Err(error) => {
            let found = format!("cannot resolve {peer}: {error}");
            return vec![line(Status::Fail, found, "write HOST, HOST:PORT or an IP address")];
        }
    };
    let mut lines: Vec<Line> = Vec::new();
    for address in addresses {
        lines.push(match Environment::route_to(address) {
            Ok(route) => route.check().into(),
            Err(error) => {
                let status = match error {
                    RouteError::Unknown(_) => Status::Unknown,
                    _ => Status::Fail,
                };
                line(status, format!("{}: {error}", address.ip()), "give another peer")
            }
        });
    }
    lines
}

/// Resolves the same forms as `send`, and a host or address without a port.
fn resolve(peer: &str) -> std::io::Result<Vec<SocketAddr>> {
    let peer = peer.strip_prefix("tcp:").unwrap_or(peer);
    let with_port = peer.to_socket_addrs();
    Ok(with_port.or_else(|_| (peer, 0).to_socket_addrs())?.collect())
}

fn lowercase<S: serde::Serializer>(status: &Status, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&status.to_string().to_ascii_lowercase())
}
