//! Network namespaces of our own, and the programs that furnish them.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use super::{again, must_succeed, network_namespace, plays, road::lent_devices, skip, test_of};

/// Runs a program in the namespace of the calling thread; its words, separated by blanks.
pub(crate) fn run(words: &str) -> Result<(), String> {
    output(words).map(|_| ())
}

/// As [`run`]; what it says.
pub(crate) fn output(words: &str) -> Result<String, String> {
    let mut parts = words.split_whitespace();
    let mut command = Command::new(parts.next().unwrap());
    // The second: a lock that an ordinary user can have.
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
    // Where distributions keep these programs, and ordinary users do not look.
    [std::env::var_os("PATH").unwrap_or_default().as_os_str(), OsStr::new("/usr/sbin:/sbin")]
        .join(OsStr::new(":"))
}

/// Runs the calling test, of which `body` is a closure, in a process and a network namespace of
/// its own: nothing of them is left when it ends, however it ends. An error of `body` means that
/// something which the test needs cannot be had here.
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
        skip(test, "no network namespace can be had");
    }
}

/// Gives the calling thread, and those that it starts, a network namespace of their own.
pub(crate) fn leave() -> Result<(), String> {
    // SAFETY: no pointers.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

/// Has this program go on in a network namespace of its own: runs it again from the start there,
/// where this returns at once.
pub(crate) fn enter() -> Result<(), String> {
    const INSIDE: &str = "PINBUF_INSIDE_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let way = network_namespace().ok_or("no network namespace can be had")?;
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).arg(exe).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(command.exec().to_string())
}
