//! The harness of the benches: contestants side by side, reported as ratios.
//!
//! A bench has tables. A table has cases, its columns. A case has rows, its contestants, with one
//! reference row. The contestants of a case take turns, a round each, in one process, so that a
//! disturbance of the machine affects all of them. A ratio is taken within a round, and the report
//! has the median of the rounds with its quartiles. Absolute times of different runs are not
//! comparable, so only the reference has a time.
//!
//! ```ignore
//! let mut bench = Bench::new("pool");
//! bench.table("one alloc and drop", "ns").case("one thread", "index stack", |case| {
//!     case.row("index stack", || Ok(|slice| per_op(thread_cpu, slice, 1000, || { ... })));
//!     case.row("pinbuf", || Err("why it cannot run here".into()));
//!     case.goal("pinbuf", "index stack", AtMost::Times(1.5));
//! });
//! bench.finish();
//! ```

#![allow(dead_code, unused_imports, reason = "each bench uses a part of it")]

mod case;
mod clock;
mod goal;
mod machine;
mod memory;
mod options;
mod plot;
mod report;
mod spread;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use case::Case;
pub(crate) use clock::{per_op, process_cpu, thread_cpu, wall};
pub(crate) use goal::AtMost;
use machine::Machine;
pub(crate) use memory::{Counting, allocated};
use options::Options;
use report::{Report, TableReport};

/// One bench program.
pub(crate) struct Bench {
    options: Options,
    report: Report,
}

/// Cases with a common unit.
pub(crate) struct Table<'a> {
    bench: &'a mut Bench,
    rounds: usize,
}

impl Bench {
    /// Reads the command line, and prints the machine and the command.
    pub(crate) fn new(name: &'static str) -> Self {
        let options = Options::from_command_line();
        let report = Report { bench: name, machine: Machine::this(), tables: Vec::new() };
        if !options.json {
            say(&format!("{}\n", report.machine.describe()));
        }
        Self { options, report }
    }

    /// Returns `full` for a measurement, `smoke` for a check that the bench runs.
    pub(crate) fn size<T>(&self, full: T, smoke: T) -> T {
        if self.options.smoke { smoke } else { full }
    }

    /// Adds a table; the next cases are its columns.
    pub(crate) fn table(&mut self, name: &str, unit: &'static str) -> Table<'_> {
        let cases = Vec::new();
        self.report.tables.push(TableReport { name: name.to_owned(), unit, cases });
        Table { rounds: self.size(15, 2), bench: self }
    }

    /// Prints the goals, and writes the report and the plot to `target/bench`.
    ///
    /// # Panics
    ///
    /// If the files cannot be written.
    pub(crate) fn finish(self) {
        let report = self.report;
        if self.options.json {
            say(&report.to_json());
        } else {
            say(&report.goals());
        }
        if self.options.smoke || self.options.filter.is_some() {
            return;
        }
        let dir = directory();
        fs::create_dir_all(&dir).expect("target/bench can be made");
        let file = |ending| dir.join(report.bench).with_extension(ending);
        fs::write(file("json"), report.to_json()).expect("the report can be written");
        plot::draw(&report, &file("svg")).expect("the plot can be drawn");
        if !self.options.json {
            say(&format!("written: {} and .svg\n", file("json").display()));
        }
    }
}

impl Table<'_> {
    /// Sets a number of rounds other than 15, for slow cases; smoke runs have 2.
    pub(crate) fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = self.bench.size(rounds, 2);
        self
    }

    /// Runs the contestants from `fill`, unless the filter excludes all.
    pub(crate) fn case<'a>(
        &mut self,
        name: &str,
        reference: &str,
        fill: impl FnOnce(&mut Case<'a>),
    ) -> &mut Self {
        let mut case = Case::new(name, reference);
        fill(&mut case);
        let slice = self.bench.size(Duration::from_millis(10), Duration::from_millis(1));
        let table = self.bench.report.tables.last_mut().expect("there is one for each Table");
        let options = &self.bench.options;
        let wanted = |row: &str| options.wants(&format!("{}/{name}/{row}", table.name));
        table.cases.extend(case.run(wanted, self.rounds, slice));
        self
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let table = self.bench.report.tables.last().expect("there is one for each Table");
        if !self.bench.options.json && !table.cases.is_empty() {
            say(&table.print());
        }
    }
}

/// The folder of reports: `target/bench`.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench")
}

fn say(text: &str) {
    // A closed pipe is no reason to fail.
    let _ = writeln!(io::stdout(), "{text}");
}
