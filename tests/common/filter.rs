//! System-call filters (seccomp), irrevocable for a process.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, c_long, sock_filter, sock_fprog,
};

/// A system call; with a position and a value, only calls with this argument.
pub(crate) type Call = (c_long, Option<(u32, u32)>);

/// All calls of `number`.
pub(crate) fn any(number: c_long) -> Call {
    (number, None)
}

/// Makes these system calls fail with `errno` from now on, in every present and future thread of
/// this process. Fails on systems without filters.
pub(crate) fn refuse(calls: &[Call], errno: i32) -> io::Result<()> {
    let mut program = answers(calls, SECCOMP_RET_ERRNO | errno as u32);
    program.push(answer(SECCOMP_RET_ALLOW));
    install(&mut program)
}

/// An allow-list: as [`refuse`], and every call that is neither refused nor allowed kills the
/// process.
pub(crate) fn refuse_of(allowed: &[Call], refused: &[Call], errno: i32) -> io::Result<()> {
    let mut program = answers(refused, SECCOMP_RET_ERRNO | errno as u32);
    program.extend(answers(allowed, SECCOMP_RET_ALLOW));
    program.push(answer(SECCOMP_RET_KILL_PROCESS));
    install(&mut program)
}

fn answer(k: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k }
}

/// Answers these calls, and goes on for all others.
fn answers(calls: &[Call], with: u32) -> Vec<sock_filter> {
    let load = |at| sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: at };
    let unless = |k, jf| sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf, k };
    // Offsets into `struct seccomp_data`: the number, then the lower halves of the arguments.
    let lower = if cfg!(target_endian = "little") { 0 } else { 4 };
    let mut program = Vec::new();
    for (number, argument) in calls {
        match argument {
            None => program.extend([load(0), unless(*number as u32, 1), answer(with)]),
            Some((position, value)) => program.extend([
                load(0),
                unless(*number as u32, 3),
                load(16 + 8 * position + lower),
                unless(*value, 1),
                answer(with),
            ]),
        }
    }
    program
}

fn install(program: &mut [sock_filter]) -> io::Result<()> {
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: takes plain numbers only; an ordinary user's filter needs the call.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mode, all_threads) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: seccomp(2) reads the filter and its program; both live through the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, all_threads, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
