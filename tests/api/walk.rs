//! The walk of a buffer is as DESIGN.md tells.
//!
//! A forked child sends one buffer and reads its notification, one instruction at a time. The functions
//! of `src/` around the instructions, inlined functions included, are compared with the two
//! tables of DESIGN.md. Helpers of at most ten lines of code may be left out there.

#![cfg(all(target_os = "linux", target_arch = "x86_64", debug_assertions))]

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    ptr,
};

use crate::common::{pool, process::alone, skip, test_of, zero_copy};

const LEN: usize = 16 << 10;

/// File below `src/`, and name.
type Function = (String, String);

/// Stops for the parent.
fn mark() {
    // SAFETY: raise(3) takes no pointers.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Sends a buffer and reads the notification, each between two marks, once nothing grows any more.
fn child() {
    let null = ptr::null_mut::<u8>();
    // SAFETY: no pointer is used.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, null, null) } != 0 {
        return;
    }
    // A group without a device completes at once, without a copy.
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    near.set_multicast_ttl_v4(0).unwrap();
    near.set_multicast_loop_v4(false).unwrap();
    near.connect((Ipv4Addr::new(239, 255, 255, 250), 9)).unwrap();
    let mut sender = zero_copy().adopt(near).unwrap();
    let pool = pool(LEN, 64);
    let buffer = || {
        let mut buf = pool.try_alloc(LEN).unwrap();
        buf.resize(LEN, 7);
        buf
    };
    for _ in 0..100 {
        (0..8).for_each(|_| _ = sender.send(buffer()).unwrap());
        sender.reap().unwrap();
    }
    // The first send asks, and has a grant for the second. The end of the second is left for the third.
    sender.send(buffer()).unwrap();
    sender.send(buffer()).unwrap();
    let buf = buffer();
    mark();
    sender.send(buf).unwrap();
    mark();
    // A notification of a single id.
    sender.reap().unwrap();
    sender.send(buffer()).unwrap();
    mark();
    sender.reap().unwrap();
    mark();
}

/// Waits until the child stops. Returns the signal, or `None` if the child has ended.
fn wait(child: libc::pid_t) -> Option<libc::c_int> {
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status))
}

fn go_on(request: libc::c_uint, child: libc::pid_t) {
    // SAFETY: no pointer is used.
    let result =
        unsafe { libc::ptrace(request, child, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The functions of `src/` up to the next mark, in the order of the first instructions.
fn functions(child: libc::pid_t) -> Vec<Function> {
    let (mut seen, mut functions) = (HashSet::new(), Vec::new());
    loop {
        go_on(libc::PTRACE_SINGLESTEP, child);
        match wait(child) {
            Some(libc::SIGTRAP) => {}
            Some(libc::SIGSTOP) => return functions,
            other => panic!("the child stops by {other:?}"),
        }
        // SAFETY: the registers are plain numbers, so all zeroes are a value.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let place = &raw mut registers;
        // SAFETY: the child is stopped, and the registers outlive the call.
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, child, ptr::null_mut::<u8>(), place) };
        // The child has the parent's addresses.
        if !seen.insert(registers.rip) {
            continue;
        }
        let mut frames = Vec::new();
        // The resolver expects return addresses, behind a call.
        let behind = (registers.rip + 1) as *mut _;
        backtrace::resolve(behind, |symbol| frames.extend(function(symbol)));
        for function in frames.into_iter().rev() {
            if !functions.contains(&function) {
                functions.push(function);
            }
        }
    }
}

/// The function of `src/` of a symbol. A closure belongs to the function around the closure.
fn function(symbol: &backtrace::Symbol) -> Option<Function> {
    let file = symbol.filename()?.to_str()?.strip_prefix(env!("CARGO_MANIFEST_DIR"));
    let file =
        file.or(symbol.filename()?.to_str())?.trim_start_matches('/').strip_prefix("src/")?;
    let name = symbol.name()?.to_string();
    // The last part is a hash.
    let mut parts = name.rsplit("::").skip(1).filter(|part| *part != "{{closure}}");
    let function = (file.to_owned(), parts.next()?.split('<').next()?.to_owned());
    // The place of an inlined function can bear the name of the outer function.
    lines(&function).map(|_| function)
}

/// Lines of code in the longest function of this name. `None`: the file has none.
fn lines((file, name): &Function) -> Option<usize> {
    let text = fs::read_to_string(root().join("src").join(file)).ok()?;
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    let indent = |line: &str| line.len() - line.trim_start().len();
    let heads = text.lines().enumerate().filter(|(_, line)| {
        let rest = line.split_once("fn ").and_then(|(_, rest)| rest.strip_prefix(name.as_str()));
        rest.is_some_and(|rest| rest.starts_with(['(', '<']))
    });
    let bodies = heads.map(|(at, head)| {
        let body =
            text.lines().skip(at).skip_while(|line| !line.ends_with(['{', '}', ';'])).skip(1);
        let body = body.filter(is_code).take_while(|line| indent(line) > indent(head));
        body.count()
    });
    bodies.max()
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The functions of a table of DESIGN.md, and the sentence behind the table.
fn table(title: &str) -> (Vec<Function>, String) {
    let page = fs::read_to_string(root().join("DESIGN.md")).unwrap();
    let (_, rest) = page.split_once(title).expect("the page has the table");
    let (_, rest) = rest.split_once("|---|---|\n").unwrap();
    let (rows, behind) = rest.split_once("\n\n").unwrap();
    let mut functions = Vec::new();
    for row in rows.lines() {
        let mut file = String::new();
        for name in row.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                let in_sender = format!("sender/{name}");
                let is_there = root().join("src").join(&in_sender).exists();
                file = if is_there { in_sender } else { name.to_owned() };
            } else {
                functions.push((file.clone(), name.rsplit("::").next().unwrap().to_owned()));
            }
        }
    }
    (functions, behind.lines().next().unwrap().to_owned())
}

fn assert_told(title: &str, walked: &[Function]) {
    let (told, sentence) = table(title);
    let mut rest = walked.iter();
    for function in &told {
        assert!(rest.any(|walked| walked == function), "{function:?} is not next: {walked:#?}");
    }
    let last = walked.len() - rest.len();
    let first = walked.iter().position(|walked| *walked == told[0]).unwrap();
    let is_left_out = |function: &&Function| !told.contains(function) && lines(function) > Some(10);
    let left_out: Vec<_> = walked[first..last].iter().filter(is_left_out).collect();
    assert!(left_out.is_empty(), "not told: {left_out:?}");
    let files: HashSet<_> = told.iter().map(|(file, _)| file).collect();
    let counts = format!("Those are {} functions in {} files", told.len(), files.len());
    assert!(sentence.starts_with(&counts), "{counts}, and the page says: {sentence}");
}

#[test]
fn the_walk_of_a_buffer_is_as_designed() {
    alone(|| {
        // SAFETY: fork(2). The child allocates, as glibc and musl allow, and leaves by _exit(2).
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let done = std::panic::catch_unwind(child).is_ok();
            // SAFETY: _exit(2) ends the process.
            unsafe { libc::_exit(i32::from(!done)) };
        }
        let Some(signal) = wait(pid) else {
            return skip(test_of(&|| ()), "a child may not be traced");
        };
        assert_eq!(signal, libc::SIGSTOP);
        let send = functions(pid);
        go_on(libc::PTRACE_CONT, pid);
        assert_eq!(wait(pid), Some(libc::SIGSTOP));
        let release = functions(pid);
        go_on(libc::PTRACE_CONT, pid);
        assert_eq!(wait(pid), None);
        assert_told("The functions of a busy send", &send);
        assert_told("The functions of a release", &release);
    });
}
