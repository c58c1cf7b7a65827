//! The command line of every bench.

use clap::Parser;

/// Contestants take turns in one process; ratios are medians over the rounds, with quartiles.
#[derive(Parser)]
pub(super) struct Options {
    /// Check in a second or so that everything runs: meaningless figures, no files
    #[arg(long)]
    pub(super) smoke: bool,
    /// Run only rows with this text in `table/case/row`, and their references
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Passed by cargo
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
