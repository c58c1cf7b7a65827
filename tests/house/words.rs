//! A count of the words in comments and docs: prose with noun subjects has few pronouns.
//!
//! The limits are those of crates that are easy to read. CONTRIBUTING.md has the rules.

use std::fs;

use crate::{files, root};

const PERSONS: &str =
    " who whom whose nobody somebody anybody everybody whoever he his him himself ";
const PRONOUNS: &str = " what which that it its itself these those such other others another one ones \
                        they them their she whatever whichever ";
const BEGINNINGS: &str = " what whether how who why which whose whoever ";

#[derive(Default, Debug)]
struct Count {
    words: usize,
    pronouns: usize,
    persons: usize,
    docs: usize,
    /// Docs with a question word in front.
    beginnings: usize,
}

impl Count {
    /// Counts the comments of a source, without code and without the unit tests at its end.
    fn add(&mut self, source: &str) {
        let (mut block, mut kind, mut in_code) = (String::new(), "", false);
        let end = source.find("\nmod tests {").unwrap_or(source.len());
        for line in source[..end].lines().chain([""]) {
            let line = line.trim_start();
            let slashes = line.find(|c| c != '/' && c != '!').unwrap_or(line.len());
            let found = if line.starts_with("//") { &line[..slashes] } else { "" };
            if found != kind {
                self.add_block(&block, kind != "//");
                (block, kind, in_code) = (String::new(), found, false);
            }
            let text = line[slashes..].trim();
            let is_fence = text.starts_with("```");
            in_code ^= is_fence;
            if !found.is_empty() && !is_fence && !in_code {
                block += text;
                block.push(' ');
            }
        }
    }

    fn add_block(&mut self, block: &str, is_doc: bool) {
        let prose = block.split('`').step_by(2).collect::<Vec<_>>().join(" ").to_lowercase();
        let is_letter = |c: char| c.is_ascii_alphabetic() || c == '\'' || c == '-';
        let words =
            prose.split(|c| !is_letter(c)).filter(|word| word.contains(char::is_alphabetic));
        let words: Vec<_> = words.map(|word| format!(" {word} ")).collect();
        let count = |list: &str| words.iter().filter(|word| list.contains(&**word)).count();
        self.words += words.len();
        self.persons += count(PERSONS);
        self.pronouns += count(PRONOUNS) + count(PERSONS);
        if let Some(first) = words.first().filter(|_| is_doc && !block.starts_with('#')) {
            self.docs += 1;
            self.beginnings += usize::from(BEGINNINGS.contains(&**first));
        }
    }

    fn is_plain(&self) -> bool {
        self.pronouns * 1000 < self.words * 45
            && self.persons * 2000 < self.words
            && self.beginnings * 100 < self.docs * 3
    }
}

/// All comments of the repository.
fn all() -> Count {
    let mut count = Count::default();
    for dir in ["src", "examples", "tests", "benches", "loom-tests"] {
        for path in files(&root().join(dir)) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                count.add(&fs::read_to_string(path).unwrap());
            }
        }
    }
    count
}

#[test]
fn comments_are_in_plain_english() {
    let count = all();
    assert!(count.words > 50_000, "the comments are read");
    assert!(count.is_plain(), "say what is meant with nouns: {count:?}");
}

#[test]
fn riddles_in_bulk_are_noticed() {
    let mut count = all();
    count.add(
        &"/// What it is that whoever comes upon them leaves to others.\nfn f() {}\n".repeat(100),
    );
    assert!(!count.is_plain(), "{count:?}");
}
