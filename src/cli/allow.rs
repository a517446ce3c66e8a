//! Flags that waive checks.

use clap::Args;

/// Under what `--help` lists them.
pub(super) const WAIVED: &str = "What is done although a check says no";

/// Flags that waive one check each, which `inject`, `search` and `release` share.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct AllowArgs {
    /// Edit a model that was already injected; the second edit adds to the first.
    #[arg(long, help_heading = WAIVED)]
    pub allow_injected: bool,
    /// Go on even if the model refuses hardly any harmful prompt.
    #[arg(long, help_heading = WAIVED)]
    pub allow_no_refusal: bool,
    /// If no edit within the limits helps, take the most useful one beyond them.
    #[arg(long, help_heading = WAIVED)]
    pub allow_over_limits: bool,
}
