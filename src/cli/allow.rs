//! Flags that waive checks.

use clap::Args;

/// Under what `--help` lists them.
pub(super) const WAIVED: &str = "What is done although a check says no";

/// Flags that waive one check each, which `inject`, `direction` and `release` share.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct AllowArgs {
    /// Edit a model that was injected before, which adds a second edit to the first.
    #[arg(long, help_heading = WAIVED)]
    pub allow_injected: bool,
    /// Search on, although the model refuses hardly any harmful prompt.
    #[arg(long, help_heading = WAIVED)]
    pub allow_no_refusal: bool,
    /// Where no edit within the limits makes the model refuse more, take the most useful one beyond them.
    #[arg(long, help_heading = WAIVED)]
    pub allow_over_limits: bool,
}
