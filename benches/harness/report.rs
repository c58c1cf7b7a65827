//! The results of a bench, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{goal::Goal, machine::Machine, spread::Spread};

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) machine: Machine,
    pub(super) tables: Vec<TableReport>,
}

#[derive(Serialize)]
pub(super) struct TableReport {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) cases: Vec<CaseReport>,
}

#[derive(Serialize)]
pub(super) struct CaseReport {
    pub(super) name: String,
    pub(super) reference: String,
    pub(super) rows: Vec<RowReport>,
    pub(super) goals: Vec<Goal>,
}

#[derive(Serialize)]
pub(super) struct RowReport {
    pub(super) name: String,
    /// The reason of a missing row.
    pub(super) skipped: Option<String>,
    /// In the unit of the table.
    pub(super) cost: Option<Spread>,
    /// To the reference, round by round.
    pub(super) ratio: Option<Spread>,
    pub(super) samples: Vec<f64>,
}

impl Report {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data")
    }

    /// Each goal with its result.
    pub(super) fn goals(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            for case in &table.cases {
                for goal in &case.goals {
                    let verdict = match goal.is_met() {
                        Some(true) => "met   ",
                        Some(false) => "MISSED",
                        None => "open  ",
                    };
                    let _ = writeln!(text, "{verdict} {}, {}: {goal}", table.name, case.name);
                }
            }
        }
        text
    }
}

impl TableReport {
    /// The names of all rows, in order of their first appearance.
    pub(super) fn rows(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for row in self.cases.iter().flat_map(|case| &case.rows) {
            if !names.contains(&row.name.as_str()) {
                names.push(row.name.as_str());
            }
        }
        names
    }

    /// As a table of Markdown, with the references in the unit and the other rows as ratios.
    pub(super) fn print(&self) -> String {
        let mut grid = vec![vec![format!("{} ({})", self.name, self.unit)]];
        grid[0].extend(self.cases.iter().map(|case| case.name.clone()));
        for name in self.rows() {
            let mut line = vec![name.to_owned()];
            line.extend(self.cases.iter().map(|case| case.cell(name)));
            grid.push(line);
        }
        let width = |column: usize| grid.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> = (0..grid[0].len()).filter_map(width).collect();
        let mut text = String::new();
        for (at, line) in grid.iter().enumerate() {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "| {cell:width$} ");
            }
            text += "|\n";
            if at == 0 {
                widths.iter().for_each(|width| _ = write!(text, "|{:-<1$}", "", width + 2));
                text += "|\n";
            }
        }
        for case in &self.cases {
            for row in &case.rows {
                if let Some(why) = &row.skipped {
                    let _ =
                        writeln!(text, "SKIPPED {}/{}/{}: {why}", self.name, case.name, row.name);
                }
            }
        }
        text
    }
}

impl CaseReport {
    pub(super) fn row(&self, name: &str) -> Option<&RowReport> {
        self.rows.iter().find(|row| row.name == name)
    }

    fn cell(&self, name: &str) -> String {
        let Some(row) = self.row(name) else { return String::new() };
        let missed = self.goals.iter().any(|goal| goal.row == name && goal.is_met() == Some(false));
        match (row.ratio, row.cost) {
            _ if row.skipped.is_some() => "skipped".to_owned(),
            (_, Some(cost)) if name == self.reference => format!("= {cost}"),
            (Some(ratio), _) => format!("{ratio}{}", if missed { " !" } else { "" }),
            (None, Some(cost)) => format!("= {cost}"),
            (None, None) => String::new(),
        }
    }
}
