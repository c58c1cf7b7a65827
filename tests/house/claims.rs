//! Claims of the documents: the files, tests, models and mutants in SAFETY.md are there, links between
//! pages lead to a heading, and no test judges by a clock, as CONTRIBUTING.md demands.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{files, root};

/// Names in SAFETY.md of files, tests and mutants, without the names in `there`.
fn missing(page: &str, there: &HashSet<String>) -> Vec<String> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter(|name| {
            !name.contains(|other: char| !other.is_ascii_alphanumeric() && !"_-/.".contains(other))
        })
        .filter(|name| {
            let is_path = name.contains('/') && !name.starts_with('/');
            let is_mutant = name.contains('-') && *name == name.to_lowercase();
            // Four words or more are the name of a test.
            is_path || is_mutant || name.matches('_').count() > 2 && *name == name.to_lowercase()
        })
        .filter(|name| !there.contains(*name))
        .map(str::to_owned)
        .collect()
}

/// Paths, paths below `src`, names of functions and of mutants.
fn there() -> HashSet<String> {
    let mut there = HashSet::new();
    for dir in [".ci", "src", "tests", "loom-tests", "benches", "examples", "fuzz"] {
        for path in files(&root().join(dir)) {
            for below in path.strip_prefix(root()).unwrap().ancestors() {
                let below = below.to_str().unwrap();
                for name in [below, below.strip_prefix("src/").unwrap_or(below)] {
                    there.extend([name.to_owned(), format!("{name}/")]);
                }
            }
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("patch") => {
                    there.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
                }
                Some("rs") => {
                    let source = fs::read_to_string(&path).unwrap();
                    let functions = source.split("fn ").skip(1);
                    let name = |rest: &str| rest.split(['(', '<']).next().unwrap().to_owned();
                    there.extend(functions.map(name));
                }
                _ => {}
            }
        }
    }
    there
}

#[test]
fn everything_that_the_safety_page_names_exists() {
    let page = fs::read_to_string(root().join("SAFETY.md")).unwrap();
    assert_eq!(missing(&page, &there()), [""; 0]);
}

#[test]
fn a_name_of_nothing_is_noticed() {
    let page = "`tests/memlock/tcp.rs` `tests/none.rs` `a_test_that_is_not` `no-such-mutant` `Pool::audit`";
    let names = ["tests/none.rs", "a_test_that_is_not", "no-such-mutant"];
    // Built here: otherwise this file would name the test.
    let page = page.replace("that_is_not", &["that", "is", "nowhere"].join("_"));
    let names = names.map(|name| name.replace("that_is_not", "that_is_nowhere"));
    assert_eq!(missing(&page, &there()), names);
}

/// The pages of the repository.
fn pages() -> Vec<PathBuf> {
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let dirs = [".ci", "benches", "docs", "examples", "fuzz", "loom-tests", "src", "tests"];
    let below = dirs.iter().flat_map(|dir| files(&root().join(dir)));
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    top.filter(|path| path.is_file()).chain(below).filter(is_page).collect()
}

/// The lines of a page outside of code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Targets of links and pictures.
fn links(page: &str) -> Vec<&str> {
    let ends = [("](", ')'), ("src=\"", '"'), ("srcset=\"", '"')];
    let in_line = |line| {
        ends.iter().flat_map(move |&(begin, end)| {
            str::split(line, begin).skip(1).filter_map(move |rest| rest.split(end).next())
        })
    };
    let defined = prose(page).filter_map(definition).map(|(_, target)| target);
    prose(page).flat_map(in_line).chain(defined).collect()
}

/// The label and the target of a line that defines a link.
fn definition(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ")
}

/// Fragments for the headings of a page, as GitHub makes them.
fn fragments(page: &str) -> HashSet<String> {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#');
        (text.len() < line.len() && text.starts_with(' ')).then(|| text.trim().to_lowercase())
    };
    let kept = |letter: char| match letter {
        ' ' => Some('-'),
        _ => (letter.is_alphanumeric() || "-_".contains(letter)).then_some(letter),
    };
    prose(page).filter_map(heading).map(|text| text.chars().filter_map(kept).collect()).collect()
}

/// Links of a page to a missing file or heading.
fn broken(page: &str, path: &Path) -> Vec<String> {
    let leads_nowhere = |link: &&str| {
        let (file, fragment) = link.split_once('#').map_or((*link, None), |(f, h)| (f, Some(h)));
        let target = path.parent().unwrap().join(file);
        let target = if file.is_empty() { path } else { &target };
        match fragment {
            None => !target.exists(),
            Some(_) if target == path => !fragments(page).contains(fragment.unwrap()),
            Some(fragment) => !fs::read_to_string(target)
                .is_ok_and(|target| fragments(&target).contains(fragment)),
        }
    };
    let is_relative = |link: &&str| !link.contains(':');
    links(page).into_iter().filter(is_relative).filter(leads_nowhere).map(str::to_owned).collect()
}

#[test]
fn every_link_between_pages_leads_to_a_heading() {
    let mut found = Vec::new();
    for path in pages() {
        let name = path.strip_prefix(root()).unwrap().display();
        let page = fs::read_to_string(&path).unwrap();
        found.extend(broken(&page, &path).iter().map(|link| format!("{name}: {link}")));
    }
    assert_eq!(found, [""; 0]);
}

/// Without a definition of its own the documentation would link to a file that is not there.
#[test]
fn every_link_of_a_page_leads_to_a_page_of_the_documentation_too() {
    let here = fs::read_to_string(root().join("src/guide/links.md")).unwrap();
    let here: HashSet<&str> = prose(&here).filter_map(definition).map(|(label, _)| label).collect();
    for path in files(&root().join("docs"))
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let page = fs::read_to_string(path).unwrap();
        for link in links(&page).iter().filter(|link| !link.contains("://")) {
            let label = prose(&page).filter_map(definition).find(|(_, target)| target == link);
            let is_here = label.is_some_and(|(label, _)| here.contains(label));
            assert!(link.starts_with('#') || is_here, "{}: {link}", path.display());
        }
    }
}

/// References of a source to a page, with a heading or without.
fn references(source: &str) -> impl Iterator<Item = &str> {
    source.split('`').filter(|word| word.starts_with("docs/") && !word.contains([' ', '\n']))
}

#[test]
fn every_page_that_a_source_names_has_the_heading() {
    let mut found = Vec::new();
    for path in ["src", "tests", "loom-tests", "benches", "examples"].map(|dir| root().join(dir)) {
        for path in files(&path).iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
            let source = fs::read_to_string(path).unwrap();
            let links: String = references(&source).map(|link| format!("]({link})")).collect();
            let name = path.strip_prefix(root()).unwrap().display();
            let broken = broken(&links, &root().join("a page at the top"));
            found.extend(broken.iter().map(|link| format!("{name}: {link}")));
        }
    }
    assert_eq!(found, [""; 0]);
}

#[test]
fn each_kernel_fact_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/Kernel.md")).unwrap();
    let mut facts = 0;
    for fact in page.split("\n### ").skip(1) {
        let heading = fact.lines().next().unwrap();
        let (_, tests) = fact.split_once("Shown by: ").unwrap_or_else(|| panic!("{heading}"));
        let tests = tests.split("\n\n").next().unwrap();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        for pair in names.chunks(2) {
            let [file, test] = pair else { panic!("{heading}: a file and a test in turn") };
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            assert!(source.contains(&format!("fn {test}(")), "{heading}: {file} {test}");
            facts += 1;
        }
    }
    assert!(facts > 40, "the page is read");
}

#[test]
fn a_broken_link_is_noticed() {
    let page = "# `ENOBUFS`, or: what now?\n[a](#enobufs-or-what-now) [b](#none) [c](none.md)\n\
                [d](README.md#is-it-for-you) [e](README.md#none) [f](https://example.com/none)\n\
                <img src=\"none.svg\">\n```\n[g](none.md)\n```\n";
    let expected = ["#none", "none.md", "README.md#none", "none.svg"];
    assert_eq!(broken(page, &root().join("PAGE.md")), expected);
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The medians in a row of a table of benches/README.md.
fn medians(table: &str, row: &str) -> Vec<String> {
    let page = page("benches/README.md");
    let lines = page.lines().skip_while(|line| !line.starts_with(&format!("| {table} (")));
    let mut rows = lines.take_while(|line| line.starts_with('|'));
    let row = rows.find(|line| line.starts_with(&format!("| {row} |")));
    let cells = row.unwrap_or_else(|| panic!("{table}: {row:?}")).split('|').skip(2);
    cells.filter_map(|cell| cell.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn figures_of_the_pages_are_those_of_the_benches() {
    const HUGE: &str = "TCP to ifb with forged ACKs, true zero copy, huge pages";
    const BASE: &str = "TCP to ifb with forged ACKs, true zero copy, base pages";
    const LOOPBACK: &str = "TCP over loopback, copied, both ends";
    let readme = [
        ("TCP, huge pages", HUGE, "pinbuf, Prefer"),
        ("TCP, base pages", BASE, "pinbuf, Prefer"),
        ("TCP, loopback, `Policy::Prefer`", LOOPBACK, "pinbuf, Prefer"),
        ("TCP, loopback, `Policy::Auto`", LOOPBACK, "pinbuf, Auto"),
    ];
    let choosing =
        [("huge pages", HUGE), ("base pages", BASE)].into_iter().flat_map(|(on, table)| {
            [
                ("bare loop with `MSG_ZEROCOPY`", "floor: loop with MSG_ZEROCOPY"),
                ("this library", "pinbuf, Prefer"),
                ("`SEND_ZC`", "io_uring SEND_ZC"),
                ("`SEND_ZC` with registered buffers", "io_uring SEND_ZC, registered"),
            ]
            .map(|(way, row)| (format!("{way}, {on}"), table, row))
        });
    let choosing = choosing.map(|(label, table, row)| ("docs/Choosing.md", label, table, row));
    let readme =
        readme.map(|(label, table, row)| ("README.md", label.to_owned(), table, row)).into_iter();
    for (name, label, table, row) in readme.chain(choosing) {
        let expected = format!("| {label} | {} |", medians(table, row).join(" | "));
        assert!(page(name).contains(&expected), "{name} lacks {expected}");
    }
}

/// Names like `Type::member` on a page, without a declaration in the sources.
fn undeclared(page: &str, sources: &str) -> Vec<String> {
    // Of other libraries.
    const FOREIGN: [&str; 3] = ["IOBuf", "WriteCallback", "WriteTraffic"];
    let declares = |kinds: &[&str], name: &str| {
        kinds.iter().any(|kind| {
            let whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            sources.split(&format!("{kind}{name}")).skip(1).any(whole)
        })
    };
    let names = page.split('`').skip(1).step_by(2).filter_map(|name| name.rsplit_once("::"));
    let names = names.map(|(path, member)| (path.rsplit("::").next().unwrap(), member));
    let names = names.filter(|(owner, member)| {
        let is_name = |name: &&str| name.chars().all(|c| c.is_alphanumeric() || c == '_');
        is_name(owner) && is_name(member) && owner.starts_with(char::is_uppercase)
    });
    names
        .filter(|(owner, _)| !FOREIGN.contains(owner))
        .filter(|(owner, member)| {
            let owners = ["struct ", "enum ", "trait ", "type "];
            // Eight blanks: a variant inside of a macro, as in src/error.rs.
            let members = ["fn ", "pub ", "\n    ", "\n        "];
            !declares(&owners, owner) || !declares(&members, member)
        })
        .map(|(owner, member)| format!("{owner}::{member}"))
        .collect()
}

fn sources() -> String {
    let files = files(&root().join("src"));
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn every_item_that_a_page_names_exists() {
    let sources = sources();
    let pages = files(&root().join("docs"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for path in pages.chain([root().join("README.md")]) {
        let page = fs::read_to_string(&path).unwrap();
        assert_eq!(undeclared(&page, &sources), [""; 0], "{}", path.display());
    }
}

#[test]
fn an_item_of_another_name_is_noticed() {
    let page =
        "`Sender::send` `Sender::no_such_call` `Nothing::send` `sender::Fate::Released` `a::b`";
    assert_eq!(undeclared(page, &sources()), ["Sender::no_such_call", "Nothing::send"]);
}

#[test]
fn the_front_pages_name_features_and_the_rust_version_of_the_manifest() {
    let manifest = page("Cargo.toml");
    let value = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let rust = manifest.lines().find(|line| line.starts_with("rust-version = ")).and_then(value);
    let features = manifest.split("[features]").nth(1).unwrap().split("\n[").next().unwrap();
    let features = features.lines().filter_map(|line| line.split_once(" = "));
    let features = features.filter(|(name, _)| *name != "default" && !name.starts_with("__"));
    let mut expected: Vec<String> = features.map(|(name, _)| format!("| `{name}` | ")).collect();
    expected.push(format!("minimum Rust version is {},", rust.unwrap()));
    for name in ["README.md", "src/lib.rs"] {
        for expected in &expected {
            assert!(page(name).contains(expected), "{name} lacks {expected}");
        }
    }
}

/// Lines with a reading of an elapsed time or of CPU time.
fn clocks(source: &str) -> Vec<usize> {
    // Built here: otherwise this file would name the clocks.
    let clocks = [["ela", "psed("], ["duration", "_since("], ["CPU", "TIME"], ["ru_u", "time"]];
    let clocks = clocks.map(|parts| parts.concat());
    let reads = |line: &str| {
        // The time left until a deadline is no judgement.
        let line = line.replace(&["saturating_", &clocks[1]].concat(), "");
        clocks.iter().any(|clock| line.contains(clock))
    };
    (1..).zip(source.lines()).filter(|(_, line)| reads(line)).map(|(at, _)| at).collect()
}

#[test]
fn no_test_judges_by_a_clock() {
    // Files that pass time along to a count, pace a peer, or print a rate.
    const ALLOWED: [&str; 5] = [
        "tests/common/mod.rs",
        "tests/kernel/linger.rs",
        "tests/simulation/main.rs",
        "tests/vm/guest.rs",
        "loom-tests/src/lib.rs",
    ];
    let mut found = Vec::new();
    for dir in ["src", "tests", "loom-tests"] {
        for path in files(&root().join(dir)) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if !name.ends_with(".rs") || ALLOWED.contains(&&*name) {
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            // The library may read clocks; tests stand last in a file.
            let is_test = dir != "src" || name.ends_with("/tests.rs");
            let first = if is_test { Some(0) } else { source.find("\nmod tests {") };
            let tests = &source[first.unwrap_or(source.len())..];
            let before = source.lines().count() - tests.lines().count();
            found.extend(clocks(tests).iter().map(|line| format!("{name}:{}", before + line)));
        }
    }
    assert_eq!(found, [""; 0], "count calls instead: tests/common/calls.rs");
}

#[test]
fn a_clock_in_a_test_is_noticed() {
    let clock = ["ela", "psed()"].concat();
    let source = format!("let begun = Instant::now();\nassert!(begun.{clock} < SECOND);");
    assert_eq!(clocks(&source), [2]);
}

/// Lines of code before the tests of a file, without empty lines and comments.
fn code_lines(source: &str) -> usize {
    let code = source.find("\nmod tests {").map_or(source, |end| &source[..end]);
    code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[test]
fn no_file_of_the_library_has_more_than_600_lines_of_code() {
    let mut long = files(&root().join("src"));
    long.retain(|path| code_lines(&fs::read_to_string(path).unwrap()) > 600);
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn comments_and_tests_are_no_lines_of_code() {
    assert_eq!(code_lines("//! A.\n\nfn b() {}\n    // C.\n\nmod tests {\nfn d() {}\n}\n"), 1);
}

#[test]
fn the_tables_of_tests_name_every_file_with_a_test() {
    let page = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let (mut programs, mut missing) = (0, Vec::new());
    for main in files(&root().join("tests")).iter().filter(|path| path.ends_with("main.rs")) {
        let folder = main.parent().unwrap();
        let program = format!("`{}/`", folder.file_name().unwrap().to_str().unwrap());
        programs += 1;
        // A folder with a heading has a table; a folder without a heading is a row.
        let Some((_, table)) = page.split_once(&format!("## {program}")) else {
            missing.extend((!page.contains(&format!("| {program} |"))).then_some(program));
            continue;
        };
        let table = table.split("\n## ").next().unwrap();
        for path in files(folder) {
            let inside = path.strip_prefix(folder).unwrap().to_str().unwrap();
            let row = inside
                .split_once('/')
                .map_or_else(|| format!("`{inside}`"), |(folder, _)| format!("`{folder}/`"));
            let has_tests = fs::read_to_string(&path).unwrap().contains("#[test]\n");
            missing.extend((has_tests && !table.contains(&row)).then(|| program.clone() + &row));
        }
    }
    assert!(
        programs > 5 && missing.is_empty(),
        "{programs} programs, tests/README.md lacks {missing:?}"
    );
}
