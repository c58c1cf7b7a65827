//! Network namespaces for tests, and the programs that configure them.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use super::{again, must_succeed, network_namespace, plays, road::lent_devices, skip, test_of};

/// Runs a program, given as words separated by blanks, in the namespace of the calling thread.
pub(crate) fn run(words: &str) -> Result<(), String> {
    output(words).map(|_| ())
}

/// As [`run`]; returns the output.
pub(crate) fn output(words: &str) -> Result<String, String> {
    let mut parts = words.split_whitespace();
    let mut command = Command::new(parts.next().unwrap());
    // The second variable: a lock file for ordinary users.
    command.args(parts).env("PATH", path()).env("XTABLES_LOCKFILE", "/dev/null");
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(format!("{words}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{words}: {error}")),
    }
}

fn path() -> OsString {
    // The usual place of these programs, absent from ordinary users' paths.
    [std::env::var_os("PATH").unwrap_or_default().as_os_str(), OsStr::new("/usr/sbin:/sbin")]
        .join(OsStr::new(":"))
}

/// Runs the calling test, with `body` as its closure, in a new process and network namespace.
/// Nothing of them is left after any kind of end. An error of `body` means a missing requirement.
pub(crate) fn in_a_namespace<F: FnOnce() -> Result<(), String>>(body: F) {
    let test = test_of(&body);
    if plays(test) {
        if let Err(error) = body() {
            skip(test, &error);
        }
    } else if lent_devices().is_some() {
        must_succeed(again(&[], test, test));
    } else if let Some(way) = network_namespace() {
        must_succeed(again(way, test, test));
    } else {
        skip(test, "this user may not make a network namespace");
    }
}

/// Moves the calling thread, and its future threads, to a new network namespace.
pub(crate) fn leave() -> Result<(), String> {
    // SAFETY: no pointers.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

/// Continues this program in a new network namespace: runs it again from its start there, where the
/// call returns at once.
pub(crate) fn enter() -> Result<(), String> {
    const INSIDE: &str = "PINBUF_INSIDE_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let way = network_namespace().ok_or("this user may not make a network namespace")?;
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).arg(exe).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(command.exec().to_string())
}
