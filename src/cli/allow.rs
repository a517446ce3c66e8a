//! Flags that override checks.

use clap::Args;

/// Heading under which `--help` lists these flags.
pub(super) const WAIVED: &str = "Check overrides";

/// Flags that each override one check, shared by `inject`, `search` and `release`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct AllowArgs {
    /// Edit a model that was already injected; the second edit adds to the first.
    #[arg(long, help_heading = WAIVED)]
    pub allow_injected: bool,
    /// Continue even if the model refuses hardly any harmful prompts.
    #[arg(long, help_heading = WAIVED)]
    pub allow_no_refusal: bool,
    /// If no edit within the limits helps, use the most useful one that exceeds them.
    #[arg(long, help_heading = WAIVED)]
    pub allow_over_limits: bool,
}
