//! The command line of every bench.

use clap::Parser;

/// Contestants take turns in one process; ratios are medians over the rounds, with quartiles.
#[derive(Parser)]
pub(super) struct Options {
    /// See in a second or so that everything runs: the figures mean nothing, no files are written
    #[arg(long)]
    pub(super) smoke: bool,
    /// Run only what has this in its `table/case/row`, and what that is measured against
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(super) fn from_command_line() -> Self {
        Self::parse()
    }

    pub(super) fn wants(&self, path: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| path.contains(filter.as_str()))
    }
}
