//! A column of a table: contestants for the same work.

use std::time::Duration;

use super::{
    goal::{AtMost, Goal},
    report::{CaseReport, RowReport},
    spread::Spread,
};

/// Does the work for about the given time, and returns the cost of one operation.
type Contestant<'a> = Box<dyn FnMut(Duration) -> f64 + 'a>;

/// Sets a contestant up, or returns the reason against it.
type Entry<'a> = Box<dyn FnOnce() -> Result<Contestant<'a>, String> + 'a>;

/// The contestants of a case, in order of entry.
pub(crate) struct Case<'a> {
    name: String,
    reference: String,
    entries: Vec<(String, Entry<'a>)>,
    goals: Vec<Goal>,
}

impl<'a> Case<'a> {
    pub(super) fn new(name: &str, reference: &str) -> Self {
        let (name, reference) = (name.to_owned(), reference.to_owned());
        Self { name, reference, entries: Vec::new(), goals: Vec::new() }
    }

    /// Enters a contestant: `set_up` makes the worker for a round, which returns the cost of one
    /// operation in the table's unit.
    pub(crate) fn row<C: FnMut(Duration) -> f64 + 'a>(
        &mut self,
        name: &str,
        set_up: impl FnOnce() -> Result<C, String> + 'a,
    ) {
        let entry = || set_up().map(|contestant| Box::new(contestant) as Contestant<'a>);
        self.entries.push((name.to_owned(), Box::new(entry)));
    }

    /// Enters a known value, without a measurement.
    pub(crate) fn value(&mut self, name: &str, value: f64) {
        self.row(name, move || Ok(move |_| value));
    }

    /// Sets a goal of `row`; `against` is a row of this case.
    pub(crate) fn goal(&mut self, row: &str, against: &str, at_most: AtMost) {
        let (row, against) = (row.to_owned(), against.to_owned());
        self.goals.push(Goal { row, against, or: None, at_most, reached: None });
    }

    /// Sets a goal of `row` against the cheaper one of two rows of this case.
    pub(crate) fn goal_of_better(&mut self, row: &str, against: [&str; 2], at_most: AtMost) {
        self.goal(row, against[0], at_most);
        self.goals.last_mut().expect("set above").or = Some(against[1].to_owned());
    }

    /// Runs the wanted rows and their references.
    pub(super) fn run(
        mut self,
        wanted: impl Fn(&str) -> bool,
        rounds: usize,
        slice: Duration,
    ) -> Option<CaseReport> {
        self.goals.retain(|goal| wanted(&goal.row));
        let Self { name, reference, entries, mut goals } = self;
        if !entries.iter().any(|(row, _)| wanted(row)) {
            return None;
        }
        let needed = |row: &str| {
            let is_goals = |goal: &Goal| goal.against == row || goal.or.as_deref() == Some(row);
            wanted(row) || row == reference || goals.iter().any(is_goals)
        };
        let mut runs: Vec<_> = entries
            .into_iter()
            .filter(|(row, _)| needed(row))
            .map(|(row, set_up)| (row, set_up(), Vec::new()))
            .collect();
        // The first round warms up. Every round begins with the next contestant, so that none
        // always follows the same one.
        let count = runs.len();
        for round in 0..=rounds {
            for at in 0..count {
                if let (_, Ok(contestant), samples) = &mut runs[(at + round) % count] {
                    let sample = contestant(slice);
                    samples.extend((round > 0).then_some(sample));
                }
            }
        }
        let samples_of = |row: &str| {
            runs.iter().find(|run| run.0 == row && run.1.is_ok()).map(|run| run.2.as_slice())
        };
        let cost_of = |row: &str| Some(Spread::of(samples_of(row)?.iter().copied())?.median);
        for goal in &mut goals {
            if let Some(or) = goal.or.take_if(|or| cost_of(or) < cost_of(&goal.against)) {
                goal.against = or;
            }
            goal.judge(samples_of(&goal.row), samples_of(&goal.against));
        }
        let floor = samples_of(&reference);
        let row_report = |(name, run, samples): &(String, Result<_, String>, Vec<f64>)| RowReport {
            name: name.clone(),
            skipped: run.as_ref().err().cloned(),
            cost: Spread::of(samples.iter().copied()),
            ratio: floor.and_then(|floor| Spread::of_ratios(samples, floor)),
            samples: samples.clone(),
        };
        let rows = runs.iter().map(row_report).collect();
        Some(CaseReport { name, reference, rows, goals })
    }
}
