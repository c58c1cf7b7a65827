//! A linter of `src/` for the import map of DESIGN.md: the allowed imports, the modules that may
//! name the system and the threads, and the places of unsafe code.
//!
//! The linter reads tokens, not text: comments, strings and `#[cfg(test)]` items do not count,
//! groups of imports are taken apart, and `super` is resolved.

use std::{fs, path::PathBuf};

use crate::{files, root};

/// A module imports only from rows further up, and from the module's own folder.
const ROWS: [&[&str]; 13] = [
    &["backing", "id", "sync"],
    &["error", "panics"],
    &["sys"],
    &["lock"],
    &["raw", "tracker", "turns"],
    &["buf", "mapped"],
    &["shared"],
    &["lease", "reaper"],
    &["pool"],
    &["sender"],
    &["pacing", "probe", "tokio"],
    &["rustls"],
    &["internals", "guide"],
];

/// Files, or folders with a slash at the end, that may contain unsafe code.
const UNSAFE_CODE: [&str; 15] = [
    "lock/mutex.rs",
    "sys/",
    "raw/bound.rs",
    "raw/class.rs",
    "raw/head.rs",
    "raw/magazine.rs",
    "raw/pool.rs",
    "raw/region.rs",
    "raw/slotref.rs",
    "raw/threads.rs",
    "internals.rs",
    "buf.rs",
    "mapped.rs",
    "shared.rs",
    "sender/kernel.rs",
];

/// Reserved paths: the paths, the file or folder with the right to name them, and the advice elsewhere.
const RESERVED: [(&[&str], &str, &str); 2] = [
    (
        &[
            "std::sync",
            "std::thread",
            "core::sync",
            "alloc::sync",
            "loom",
            "crossbeam",
            "crossbeam_utils",
        ],
        "sync.rs",
        "use crate::sync",
    ),
    (&["libc"], "sys/", "add a function to crate::sys"),
];

/// Modules without knowledge of sockets, and the forbidden imports.
const SOCKETLESS: [&str; 3] = ["raw", "pool", "tracker"];
const SOCKET_CODE: [&str; 4] = ["socket", "errqueue", "epoll", "fallback"];

/// Modules with few imports from the crate: the tracker is pure, and TLS is built on the public interface.
const ONLY: [(&str, &[&str]); 3] = [
    ("tracker", &["id", "error"]),
    ("rustls", &["buf", "error", "id", "lease", "pool", "sender", "sync", "tokio"]),
    ("tokio", &["error", "id", "lease", "panics", "sender", "sync", "turns"]),
];

/// Circles of imports, direct or through further files: files, or folders with a slash at the end. The list may only shrink.
const CIRCLES: [&str; 0] = [];

#[test]
fn the_source_keeps_to_the_map() {
    let files = source();
    let faults: Vec<_> = files.iter().flat_map(|(path, text)| check(path, text)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn no_files_import_each_other() {
    let circles = circles(&source());
    let is_known = |circle: &Vec<String>| {
        CIRCLES.iter().any(|place| circle.iter().all(|file| is_in(file, place)))
    };
    let new: Vec<_> = circles.iter().filter(|circle| !is_known(circle)).collect();
    assert!(new.is_empty(), "these files import each other: {new:?}");
    for place in CIRCLES {
        let has_circle = circles.iter().any(|circle| circle.iter().all(|file| is_in(file, place)));
        assert!(has_circle, "no files in {place} import each other: strike it off the list");
    }
}

/// The paths from `src/` and the contents of the library's Rust files, without files of tests.
fn source() -> Vec<(String, String)> {
    let source = root().join("src");
    let mut files = files(&source);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    // A module's tests in a separate file, compiled for tests only.
    files.retain(|path| !path.ends_with("tests.rs"));
    files.sort_unstable();
    let name = |path: &PathBuf| path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
    let files: Vec<_> =
        files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect();
    assert!(files.iter().any(|(path, _)| path == "lib.rs"), "no source in {}", source.display());
    files
}

/// The faults of the file `path` (from `src/`), one per line.
fn check(path: &str, text: &str) -> Vec<String> {
    let tokens = without_tests(&tokens(text));
    let mut faults = Vec::new();
    let mut fault = |line: usize, what: String| faults.push(format!("src/{path}:{line}: {what}"));

    if !UNSAFE_CODE.iter().any(|place| is_in(path, place)) {
        for token in tokens.iter().filter(|token| token.text == "unsafe") {
            fault(token.line, "unsafe code has no place here".to_owned());
        }
    }
    let module = module_of(path);
    let own = module.first().map_or("lib", String::as_str);
    if own != "lib" && row(own).is_none() {
        fault(1, format!("`{own}` has no row in the import map"));
    }
    for Import { path: import, line } in imports(&tokens, &module) {
        let name = import.join("::");
        for (reserved, owner, instead) in RESERVED {
            let named =
                |reserved: &&&str| name == **reserved || name.starts_with(&format!("{reserved}::"));
            if let Some(reserved) = reserved.iter().find(named)
                && !is_in(path, owner)
            {
                fault(line, format!("only {owner} may name `{reserved}`: {instead}"));
            }
        }
        if SOCKETLESS.contains(&own) && name.split("::").any(|part| part == "net") {
            fault(line, format!("`{own}` knows no sockets: `{name}`"));
        }
        let words: Vec<_> = import.iter().map(String::as_str).collect();
        let ["crate", target, rest @ ..] = words.as_slice() else { continue };
        let target = *target;
        if own == "lib" || own == target {
            continue;
        }
        match (row(own), row(target)) {
            (_, None) => fault(
                line,
                format!("`crate::{target}` is no module with a row: import from the module"),
            ),
            (Some(own_row), Some(target_row)) if target_row >= own_row => {
                fault(line, format!("`{own}` may not import `{target}`"));
            }
            _ => {}
        }
        for (module, only) in ONLY {
            if own == module && !only.contains(&target) {
                fault(line, format!("`{module}` imports only {only:?}, not `{target}`"));
            }
        }
        if SOCKETLESS.contains(&own)
            && target == "sys"
            && rest.first().is_none_or(|name| SOCKET_CODE.contains(name) || *name == "*")
        {
            fault(line, format!("`{own}` knows no sockets: `crate::sys::{}`", rest.join("::")));
        }
    }
    faults.dedup();
    faults
}

/// The circles of imports, direct or through further files; the files of a circle in order.
///
/// An import through the module above, by `pub use`, counts as an import of the file behind the module.
fn circles(files: &[(String, String)]) -> Vec<Vec<String>> {
    let modules: Vec<_> = files.iter().map(|(path, _)| module_of(path)).collect();
    let imports: Vec<Vec<_>> = (files.iter().zip(&modules))
        .map(|((_, text), module)| {
            let imports = imports(&without_tests(&tokens(text)), module);
            imports.into_iter().map(|import| absolute(import.path, module, &modules)).collect()
        })
        .collect();
    // The file with the definition of the name, as far as re-exports tell.
    let target = |mut path: Vec<String>| {
        for _ in 0..8 {
            let file = (0..files.len())
                .filter(|&file| path.starts_with(&modules[file]))
                .max_by_key(|&file| modules[file].len())?;
            let name = path.get(modules[file].len())?;
            let exported = imports[file].iter().find(|import| import.last() == Some(name));
            match exported {
                Some(exported) if *exported != path => path = exported.clone(),
                _ => return Some(file),
            }
        }
        None
    };
    let mut reached: Vec<Vec<bool>> = (imports.iter().enumerate())
        .map(|(file, imports)| {
            let mut to = vec![false; files.len()];
            let targets = imports.iter().filter_map(|path| target(path.clone()));
            targets.filter(|other| *other != file).for_each(|other| to[other] = true);
            to
        })
        .collect();
    for via in 0..files.len() {
        let behind = reached[via].clone();
        for row in reached.iter_mut().filter(|row| row[via]) {
            row.iter_mut().zip(&behind).for_each(|(to, behind)| *to |= behind);
        }
    }
    let mut circles: Vec<Vec<String>> = (0..files.len())
        .filter(|&file| reached[file][file])
        .map(|file| {
            let both = |other: &usize| reached[file][*other] && reached[*other][file];
            (0..files.len()).filter(both).map(|other| files[other].0.clone()).collect()
        })
        .collect();
    circles.dedup();
    circles.sort_unstable();
    circles.dedup();
    circles
}

/// A path from the root, without `crate`: of `crate::a::b`, or of `b` for a module `b` inside this
/// one. Empty for a path into a foreign crate, or of a local name.
fn absolute(path: Vec<String>, module: &[String], modules: &[Vec<String>]) -> Vec<String> {
    if path.first().is_some_and(|first| first == "crate") {
        return path[1..].to_vec();
    }
    let inside: Vec<_> = module.iter().chain(path.first()).cloned().collect();
    if modules.iter().any(|other| other.starts_with(&inside)) {
        module.iter().cloned().chain(path).collect()
    } else {
        Vec::new()
    }
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Returns `true` if `path` is the file `place`, or in the folder if `place` ends with a slash, or
/// in the file or folder of the module if `place` has no ending.
fn is_in(path: &str, place: &str) -> bool {
    path == place
        || place.ends_with('/') && path.starts_with(place)
        || module_of(path).first().is_some_and(|module| module == place)
}

/// `raw/slot.rs` is `raw::slot`, `raw/mod.rs` is `raw`, `lib.rs` is the root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path =
        path.strip_suffix("mod").filter(|p| p.is_empty() || p.ends_with('/')).unwrap_or(path);
    path.split('/').filter(|part| !part.is_empty() && *part != "lib").map(str::to_owned).collect()
}

/// A path in the code, from `crate` or from the name of a foreign crate.
struct Import {
    path: Vec<String>,
    line: usize,
}

/// All named paths, in `use` items and elsewhere.
fn imports(tokens: &[Token<'_>], file_module: &[String]) -> Vec<Import> {
    let mut found = Vec::new();
    let mut module = file_module.to_vec();
    // Depths of the closing braces of inline modules.
    let mut inline = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    while at < tokens.len() {
        let line = tokens[at].line;
        match text(at) {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            "mod" if text(at + 2) == "{" => {
                inline.push(depth);
                module.push(text(at + 1).to_owned());
                at += 1;
            }
            "use" if text(at + 1) != "<" => {
                let mut paths = Vec::new();
                at = use_tree(tokens, at + 1, &[], &mut paths);
                found.extend(
                    paths.into_iter().map(|path| Import { path: resolve(path, &module), line }),
                );
                continue;
            }
            word if is_name(word) => {
                let mut path = vec![word.to_owned()];
                while text(at + 1) == "::" && is_name(text(at + 2)) {
                    path.push(text(at + 2).to_owned());
                    at += 2;
                }
                // A lone word is a variable, a macro or a `cfg`.
                if path.len() > 1 {
                    found.push(Import { path: resolve(path, &module), line });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Takes a use tree apart. Returns the place behind the tree.
fn use_tree(
    tokens: &[Token<'_>],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, &path, paths);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 1,
            "self" if !path.is_empty() => {}
            "*" => path.push("*".to_owned()),
            name if is_name(name) => path.push(name.to_owned()),
            _ => {}
        }
        at += 1;
    }
    if path.len() > prefix.len() || !path.is_empty() {
        paths.push(path);
    }
    at
}

/// Follows `self` and `super` to a path from `crate`.
fn resolve(path: Vec<String>, module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path.as_slice();
    if !matches!(rest.first().map(String::as_str), Some("self" | "super")) {
        return path;
    }
    while let Some((first, behind)) = rest.split_first() {
        match first.as_str() {
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        rest = behind;
    }
    ["crate".to_owned()].into_iter().chain(base).chain(rest.iter().cloned()).collect()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Removes the items behind `#[cfg(test)]` and `#[cfg(all(test, ...))]`.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Some(end) = attribute(tokens, at) else {
            kept.push(tokens[at]);
            at += 1;
            continue;
        };
        let words: Vec<_> = tokens[at..end].iter().map(|token| token.text).collect();
        let only_tests = words.contains(&"cfg")
            && words.contains(&"test")
            && words.windows(3).all(|three| three[0] != "not" || three[2] == "loom")
            && !words.contains(&"any");
        if only_tests {
            at = item(tokens, end);
        } else {
            kept.extend(&tokens[at..end]);
            at = end;
        }
    }
    kept
}

/// The end of the outer attribute at `at`, if any.
fn attribute(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let is = |at: usize, text| tokens.get(at).is_some_and(|token: &Token<'_>| token.text == text);
    (is(at, "#") && is(at + 1, "[")).then(|| balanced(tokens, at + 1, "[", "]"))
}

/// The end of the item at `at`: the semicolon or the block.
fn item(tokens: &[Token<'_>], mut at: usize) -> usize {
    while let Some(end) = attribute(tokens, at) {
        at = end;
    }
    let is_use =
        tokens[at..].iter().take_while(|token| token.text != "{").any(|token| token.text == "use");
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "{" if !is_use => return balanced(tokens, at, "{", "}"),
            _ => at += 1,
        }
    }
    at
}

/// The place behind the closing bracket for the bracket at `at`.
fn balanced(tokens: &[Token<'_>], at: usize, open: &str, close: &str) -> usize {
    let mut depth = 0;
    for (offset, token) in tokens[at..].iter().enumerate() {
        if token.text == open {
            depth += 1;
        } else if token.text == close {
            depth -= 1;
            if depth == 0 {
                return at + offset + 1;
            }
        }
    }
    tokens.len()
}

/// Words, `::` and single signs, without comments, literals and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = raw_string(rest) {
            len
        } else if let Some(prefix) =
            ["\"", "b\"", "c\"", "b'"].into_iter().find(|prefix| rest.starts_with(prefix))
        {
            let quote = if prefix.ends_with('"') { '"' } else { '\'' };
            prefix.len() + quoted(&rest[prefix.len()..], quote)
        } else if first == '\'' {
            let mut behind = rest[1..].chars();
            match (behind.next(), behind.next()) {
                (Some('\\'), _) | (_, Some('\'')) => 1 + quoted(&rest[1..], '\''),
                _ => 1,
            }
        } else if word > 0 {
            tokens.push(Token { text: &rest[..word], line });
            word
        } else {
            let len = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            if !first.is_whitespace() {
                tokens.push(Token { text: &rest[..len], line });
            }
            len
        };
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of the raw string here, if any.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].iter().find(|prefix| {
        text.strip_prefix(**prefix).is_some_and(|rest| rest.starts_with(['#', '"']))
    })?;
    let hashes = text[prefix.len()..].chars().take_while(|c| *c == '#').count();
    let inside = text[prefix.len() + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let len = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(text.len() - inside.len() + len)
}

/// The length up to the closing `quote`, included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Files with one violation, and the expected message.
#[test]
fn every_rule_is_enforced() {
    for (path, text, said) in [
        // Rows.
        ("raw/slot.rs", "use crate::pool::Pool;", "`raw` may not import `pool`"),
        (
            "raw/slot.rs",
            "use crate::{\n  id::A,\n  sender::{B, C},\n};",
            "`raw` may not import `sender`",
        ),
        ("pool.rs", "fn f() { crate::sender::g(); }", "`pool` may not import `sender`"),
        ("pool.rs", "fn f(s: &super::sender::Sender) {}", "`pool` may not import `sender`"),
        ("pool/mod.rs", "use super::sender;", "`pool` may not import `sender`"),
        ("raw/mod.rs", "mod a { use super::super::pool::P; }", "`raw` may not import `pool`"),
        ("raw/slot.rs", "use super::super::pool as p;", "`raw` may not import `pool`"),
        ("buf.rs", "use crate::mapped::M;", "`buf` may not import `mapped`"),
        ("id.rs", "use crate::error::E;", "`id` may not import `error`"),
        ("buf.rs", "use crate::Pool;", "no module with a row"),
        ("buf.rs", "use crate::*;", "no module with a row"),
        ("extra.rs", "", "`extra` has no row"),
        ("reaper.rs", "type S = Vec<crate::sender::Sender>;", "`reaper` may not import `sender`"),
        // The tracker.
        ("tracker.rs", "use crate::sync::Arc;", "`tracker` imports only"),
        ("tracker.rs", "use crate::{id::A, raw::B};", "`tracker` imports only"),
        // TLS.
        ("rustls/stream.rs", "use crate::sys::socket;", "`rustls` imports only"),
        ("rustls/mod.rs", "use crate::raw::RawPool;", "`rustls` imports only"),
        ("sender/mod.rs", "use crate::rustls::TlsStream;", "`sender` may not import `rustls`"),
        // Sockets.
        ("pool.rs", "use crate::sys::socket::send;", "`pool` knows no sockets"),
        ("raw/pool.rs", "use crate::{sys::{memory, errqueue}};", "`raw` knows no sockets"),
        ("raw/pool.rs", "use crate::sys;", "`raw` knows no sockets"),
        ("raw/pool.rs", "use std::net::TcpStream;", "`raw` knows no sockets"),
        // Reserved names.
        ("buf.rs", "use std::sync::Arc;", "only sync.rs may name `std::sync`"),
        (
            "buf.rs",
            "use std::{fmt, sync::{atomic::AtomicU32}};",
            "only sync.rs may name `std::sync`",
        ),
        ("buf.rs", "fn f() { ::std::thread::sleep(d) }", "only sync.rs may name `std::thread`"),
        ("buf.rs", "use core::sync::atomic;", "only sync.rs may name `core::sync`"),
        ("buf.rs", "fn f() { loom::model(|| {}) }", "only sync.rs may name `loom`"),
        ("buf.rs", "use loom;", "only sync.rs may name `loom`"),
        ("sys/socket.rs", "use crossbeam::utils::X;", "only sync.rs may name `crossbeam`"),
        ("lib.rs", "use std::thread;", "only sync.rs may name `std::thread`"),
        ("raw/region.rs", "fn f() -> libc::c_int { 0 }", "only sys/ may name `libc`"),
        ("raw/region.rs", "use libc::{self as c};", "only sys/ may name `libc`"),
        // Unsafe code.
        ("pool.rs", "fn f() { unsafe { g() } }", "unsafe code has no place"),
        ("raw/waiters.rs", "unsafe impl Send for X {}", "unsafe code has no place"),
        ("sender/mod.rs", "#[unsafe(no_mangle)] fn f() {}", "unsafe code has no place"),
        (
            "pool.rs",
            "fn f<'a>(c: char) { let _ = ('\\'', '\"'); unsafe { g() } }",
            "unsafe code has",
        ),
        ("pool.rs", "/* a /* b */ c */ unsafe fn f() {}", "unsafe code has no place"),
        ("pool.rs", "const A: &str = r#\"\"#; unsafe fn f() {}", "unsafe code has no place"),
        // Items that are not only for tests.
        ("pool.rs", "#[cfg(not(test))] unsafe fn f() {}", "unsafe code has no place"),
        ("pool.rs", "#[cfg(test)] mod t { } unsafe fn f() {}", "unsafe code has no place"),
        ("pool.rs", "#[cfg(test)] use a::{b, c}; unsafe fn f() {}", "unsafe code has no place"),
    ] {
        let faults = check(path, text);
        assert!(
            faults.iter().any(|fault| fault.contains(said)),
            "{path}: {text}: expected {said}, found {faults:?}"
        );
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (path, text) in [
        ("sync.rs", "pub(crate) use std::{sync::Arc, thread}; use loom::sync::Mutex;"),
        ("sys/errqueue.rs", "use super::{Batch, socket}; use crate::error::E; unsafe fn f() {}"),
        ("sys/socket.rs", "use super::fallback::abort; fn f() -> libc::c_int { 0 }"),
        ("raw/slot.rs", "use super::freelist::F; use crate::{id::I, raw::waiters, sync::*};"),
        ("raw/region.rs", "use crate::sys::memory; fn f() { unsafe { g() } }"),
        ("tracker.rs", "use crate::{error::E, id::{A, B}}; use std::collections::VecDeque;"),
        ("sender/mod.rs", "mod queue; use self::queue::Q; use crate::{pool::P, sys::socket};"),
        ("sender/queue.rs", "use super::Sender; use std::net::TcpStream;"),
        ("rustls/session.rs", "use ::rustls::Error; use crate::{buf::B, sender::S};"),
        ("lib.rs", "mod pool; pub use pool::Pool; pub use sender::Sender;"),
        ("pool.rs", "// unsafe crate::sender::X\n/// std::sync\nfn f() { g(\"unsafe libc::x\") }"),
        ("pool.rs", "#[cfg(test)] mod tests { use crate::sender::S; fn f() { unsafe { g() } } }"),
        ("pool.rs", "#[cfg(all(test, unix))] #[allow(x)] mod t { use std::thread; } fn f() {}"),
        ("pool.rs", "#[cfg(loom)] fn f() { if cfg!(loom) {} }"),
        ("pool.rs", "#![allow(unsafe_code)] fn f() -> impl X + use<'_> { thread::x() }"),
        ("pool.rs", "const A: &str = r\"unsafe\"; const B: &[u8] = br#\"\"unsafe\"#;"),
        ("pool.rs", "mod a { use super::b; } mod b {}"),
    ] {
        assert_eq!(check(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn circles_are_found_through_exports_and_files() {
    let found = |files: &[(&str, &str)]| {
        let files: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        circles(&files)
    };
    let root = ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;");
    let none = [root, ("a.rs", "use crate::b::B; struct A;"), ("b.rs", "struct B;")];
    assert_eq!(found(&none), Vec::<Vec<String>>::new());
    for (a, b) in [
        ("use crate::b::B;", "use crate::a::A;"),
        ("use crate::b::B;", "fn f() { super::a::g() }"),
        ("use crate::B;", "use crate::A;"),
        ("use super::{b::{B, C}};", "use crate::{a as x};\nuse crate::a::A;"),
    ] {
        assert_eq!(found(&[root, ("a.rs", a), ("b.rs", b)]), [["a.rs", "b.rs"]], "{a} {b}");
    }
    let three = [
        ("m/a.rs", "use super::b::B;"),
        ("m/b.rs", "use super::C;"),
        ("m/c.rs", "use crate::m::a;\nuse crate::m::a::A;"),
        ("m/mod.rs", "mod a; mod b; mod c; pub(crate) use c::C;"),
    ];
    assert_eq!(found(&three), [["m/a.rs", "m/b.rs", "m/c.rs"]]);
    let tests = [("a.rs", "use crate::b::B;"), ("b.rs", "#[cfg(test)] mod t { use crate::a::A; }")];
    assert_eq!(found(&tests), Vec::<Vec<String>>::new());
}
