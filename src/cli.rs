//! Command-line flags as clap parses them. [`options`] validates them for the commands.

mod allow;
mod asking;
pub mod commands;
mod offload;
pub mod options;

use std::path::PathBuf;

use clap::{ArgAction, Args, FromArgMatches, Parser, Subcommand};

use crate::method::edit::Method;
use crate::method::search::DirectionSource;
use crate::pipeline::options::ThinkingMode;
use crate::sources::ModelArg;

pub use allow::AllowArgs;
pub use asking::{AskArgs, ChatArgs, EvalArgs};
pub use offload::{DevicesArgs, OffloadArgs, RpcServerArgs, arguments};

/// Printed at the end of `--help` and of the manual page.
const EXIT_STATUS: &str = "Exit status: 0 success; 1 user error; 2 internal error; 3 not verified: less than \
                           90 % of the edit is in the file.";

// Headings under which `--help` groups the flags of the long commands.
const EDIT: &str = "Edit options";
const LIMITS: &str = "Limits";
const SEARCH: &str = "Search options";
const OUTPUT: &str = "Output options";
const REPORT: &str = "Report options";
const MODEL: &str = "Model options";
const MACHINE: &str = "Runtime options";

/// Make a GGUF language model safer in minutes, without training.
#[derive(Debug, Parser)]
#[command(name = "rosi-gguf", version, about, long_about = None, arg_required_else_help = true, after_help = EXIT_STATUS)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// Print errors and warnings only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more detail; -vv also prints llama.cpp's log.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a safer copy of a model.
    Inject(Box<InjectArgs>),
    /// Find the best edit and store it for `inject --edit` on any quantization of the model.
    Search(Box<SearchCommandArgs>),
    /// Write a stored edit as a LoRA adapter or a control vector, to apply it without changing the model file.
    Export(ExportArgs),
    /// Show what a model file contains and which of its matrices `inject` would edit.
    Inspect(InspectArgs),
    /// Compare a model with its injected copy, byte by byte and tensor by tensor.
    Verify(VerifyArgs),
    /// Rebuild a file that `inject` wrote from its original model and recorded settings, and compare the bytes.
    Reproduce(Box<ReproduceArgs>),
    /// Ask a model and print its greedy answers.
    Ask(AskArgs),
    /// Chat with a model, optionally side by side with an adapter or a second model; reads messages from stdin.
    Chat(ChatArgs),
    /// Measure models: refusals, KL divergence from a base, perplexity, multiple choice, jailbreaks.
    Eval(EvalArgs),
    /// Write one edit into every quantization of a model, with checksums and a model card; an interrupted release
    /// resumes.
    Release(Box<ReleaseArgs>),
    /// Show a report that `inject --report` wrote, as a summary or as an HTML page.
    Report(ReportArgs),
    /// Restore a file that `inject --in-place` changed, even after a crash halfway through.
    Undo(UndoArgs),
    /// List the devices that models can run on, including those of RPC workers; same as `--list-devices`.
    Devices(DevicesArgs),
    /// Serve this machine's devices to another machine (llama.cpp's RPC worker, for use with `--rpc`).
    RpcServer(RpcServerArgs),
    /// Print shell completions.
    Completions {
        /// The shell to generate completions for.
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them.
    Man(ManArgs),
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command to document [default: rosi-gguf itself].
    pub command: Option<String>,
    /// Write all pages to this directory, e.g. ~/.local/share/man/man1.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// Flags of `inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    pub model: ModelArg,
    /// Output file [default: NAME-rosi.gguf beside the model, or in the current directory for a model given by name].
    #[arg(short, long, help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Edit MODEL itself; `rosi-gguf undo MODEL` restores it from NAME.rosi-undo, which is as large as the edited
    /// matrices.
    #[arg(long, conflicts_with_all = ["output", "promote"], help_heading = OUTPUT)]
    pub in_place: bool,
    /// Flags of the search.
    #[command(flatten)]
    pub search: SearchArgs,
    /// Apply an edit stored by `search` instead of searching.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "method", "layer", "contrast", "max_kl", "max_false_refusal", "trials", "time_budget", "memory", "direction_source",
        "system_prompt", "resume", "allow_no_refusal", "allow_over_limits"
    ], help_heading = SEARCH)]
    pub edit: Option<PathBuf>,
    /// How to quantize edited tensors: preserve (keep the edit, on each block's existing grid), nearest, or
    /// promote=TYPE.
    #[arg(long, default_value = "preserve", value_name = "preserve|nearest|promote=TYPE", help_heading = OUTPUT)]
    pub requant: String,
    /// Convert edited tensors that have fewer bits to this type, e.g. Q8_0; the file grows.
    #[arg(long, value_name = "TYPE", conflicts_with = "requant", help_heading = OUTPUT)]
    pub promote: Option<String>,
    /// Importance matrix from llama-imatrix, used in addition to the statistics of the prompts.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub imatrix: Option<PathBuf>,
    /// Write the full report to this file, as JSON.
    #[arg(long, value_name = "FILE.json", help_heading = REPORT)]
    pub report: Option<PathBuf>,
    /// Write the report to this file, as one HTML page: charts, tables, answers before and after.
    #[arg(long, value_name = "FILE.html", help_heading = REPORT)]
    pub html: Option<PathBuf>,
    /// Print the full report to stdout, as JSON.
    #[arg(long, help_heading = REPORT)]
    pub json: bool,
    /// Show what would be done, without running the model.
    #[arg(long)]
    pub dry_run: bool,
    /// Overwrite existing outputs: the model, the reports, the adapter, and the Ollama model of --ollama-create.
    #[arg(long, help_heading = OUTPUT)]
    pub overwrite: bool,
    /// Flags that override checks.
    #[command(flatten)]
    pub allow: AllowArgs,
    /// Apply a stored edit even if it was found on different weights.
    #[arg(long, requires = "edit", help_heading = allow::WAIVED)]
    pub allow_other_weights: bool,
    /// Also write the exact edit as a LoRA adapter for `llama-server --lora`.
    #[arg(long, value_name = "LORA.gguf", help_heading = OUTPUT)]
    pub save_adapter: Option<PathBuf>,
    /// Also register the model as NAME with the running Ollama server (OLLAMA_HOST); if none is running, print the
    /// command.
    #[arg(long, value_name = "NAME", conflicts_with = "in_place", help_heading = OUTPUT)]
    pub ollama_create: Option<String>,
    /// Also score the controls: the exact edit, a random direction, the published edit, and requantization alone.
    #[arg(long, help_heading = REPORT)]
    pub controls: bool,
    /// A second model that judges whether each answer to the report split refuses, beside the rules.
    #[arg(long, value_name = "JUDGE.gguf", help_heading = REPORT)]
    pub judge: Option<ModelArg>,
    /// Keep full answers in the report instead of only their beginnings.
    #[arg(long, help_heading = REPORT)]
    pub full_answers: bool,
    /// Seed of the random control direction.
    #[arg(long, default_value_t = 0, help_heading = REPORT)]
    pub seed: u64,
    /// How to run the model.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The edit stored by `search`.
    pub edit: PathBuf,
    /// Any quantization of the model that the edit was found on.
    #[arg(long, value_name = "MODEL")]
    pub model: ModelArg,
    /// Write the exact edit as a LoRA adapter, for `llama-server --lora` and ADAPTER in an Ollama Modelfile.
    #[arg(long, value_name = "OUT.gguf", required_unless_present = "control_vector")]
    pub lora: Option<PathBuf>,
    /// Write the mean push of linear gates on harmful prompts as a control vector, for `llama-server
    /// --control-vector`. It has no gates, so it pushes on every prompt.
    #[arg(long, value_name = "OUT.gguf")]
    pub control_vector: Option<PathBuf>,
    /// Strength, as for `inject --strength` [default: as stored].
    #[arg(long, default_value = "auto", hide_default_value = true, allow_hyphen_values = true)]
    pub strength: String,
    /// Describe the written files on stdout, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Overwrite existing outputs.
    #[arg(long)]
    pub overwrite: bool,
    /// Export the edit even if it was found on different weights.
    #[arg(long)]
    pub allow_other_weights: bool,
    /// Directory of patch files (*.toml) that extend or replace the built-in ones.
    #[arg(long, value_name = "DIR")]
    pub patches: Option<PathBuf>,
}

/// Flags of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// A CONFIG.toml; a high-precision model (F16, BF16, Q8_0) to quantize to --types; or existing quantizations of one
    /// model, which are edited directly.
    #[arg(required = true, value_name = "CONFIG.toml|SOURCE")]
    pub sources: Vec<PathBuf>,
    /// Directory to write to; overrides the one in CONFIG.toml.
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Quantization types to make, as named by llama-quantize, e.g. Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS.
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…")]
    pub types: Vec<String>,
    /// Apply an edit stored by `search` instead of searching.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
    /// Importance matrix from llama-imatrix, for llama.cpp's quantizer and for the edit.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// File names up to the type [default: the source's name with -rosi appended].
    #[arg(long)]
    pub name: Option<String>,
    /// The base model on Hugging Face, for the model card [default: from the source's metadata].
    #[arg(long, value_name = "OWNER/NAME")]
    pub base_model: Option<String>,
    /// The license, for the model card [default: from the source's metadata].
    #[arg(long)]
    pub license: Option<String>,
    /// Skip the scores; only check that no file refuses less than its base (48 harmful prompts).
    #[arg(long)]
    pub no_score: bool,
    /// Score with at most this many prompts of each kind.
    #[arg(long, value_name = "N", conflicts_with = "no_score")]
    pub score_prompts: Option<usize>,
    /// Keep the quantizations without the edit in DIR/base.
    #[arg(long)]
    pub keep_bases: bool,
    /// List the finished files on stdout, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Overwrite files in the directory, even those made from other inputs.
    #[arg(long)]
    pub overwrite: bool,
    /// Flags that override checks.
    #[command(flatten)]
    pub allow: AllowArgs,
    /// Write the edit even if it was found on different weights.
    #[arg(long, help_heading = allow::WAIVED)]
    pub allow_other_weights: bool,
    /// Flags of the search, used unless `edit` is given.
    #[command(flatten)]
    pub search: SearchArgs,
    /// How to run the model.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of the search, which `inject`, `search` and `release` share.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct SearchArgs {
    /// How to edit the weights [default: detector; contrast if the model has no feed-forward network that every token
    /// passes through].
    #[arg(long, value_enum, help_heading = EDIT)]
    pub method: Option<Method>,
    /// Strength of the edit, or auto. For detectors, the push in lengths of the direction (6, up to 12 if the model
    /// itself refuses little); for the other methods, the size of the change as a share of the edited weights
    /// (0.04 = 4 %).
    #[arg(long, default_value = "auto", allow_hyphen_values = true, help_heading = EDIT)]
    pub strength: String,
    /// Layer whose direction is used, counted from 0, or auto. For detectors, the middle one of their layers.
    #[arg(long, default_value = "auto", allow_hyphen_values = true, help_heading = EDIT)]
    pub layer: String,
    /// How strongly to protect answers to prompts that only sound harmful, or auto; lower values refuse more of
    /// everything. For detectors, the pull away from refusal, as a share of the push; for the contrast method, κ, the
    /// weight of answering harmless and borderline prompts.
    #[arg(long, value_name = "K", default_value = "auto", allow_hyphen_values = true, help_heading = EDIT)]
    pub contrast: String,
    /// Maximum KL divergence from the base on harmless prompts (first token, nats) [default: 0.05, up to 0.1 if the
    /// model itself refuses little; 0.1 if refusal was removed from it].
    #[arg(long, value_name = "NATS", allow_hyphen_values = true, help_heading = LIMITS)]
    pub max_kl: Option<f64>,
    /// Maximum increase in refusals of harmless or borderline prompts, as a share [default: 0.1, up to 0.25 if the model
    /// itself refuses little; 0.25 if refusal was removed from it; no limit for the published method].
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, help_heading = LIMITS)]
    pub max_false_refusal: Option<f64>,
    /// Number of edits whose answers are generated and judged.
    #[arg(long, default_value_t = 3, help_heading = SEARCH)]
    pub trials: usize,
    /// Start no new trial after this many seconds.
    #[arg(long, value_name = "SECONDS", help_heading = SEARCH)]
    pub time_budget: Option<u64>,
    /// Memory limit in MiB for the inputs that linear gates are trained on; if a model needs more, fewer prompts are
    /// used.
    #[arg(
        long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..=1 << 24),
        help_heading = SEARCH
    )]
    pub memory: u64,
    /// Prompts to learn from, choose by and report on, besides the bundled ones: JSON, CSV, TSV or text. The kind goes
    /// before the file (harmful:FILE) if the file does not state it.
    #[arg(long, num_args = 1.., value_name = "[KIND:]FILE", help_heading = SEARCH)]
    pub prompts: Vec<PathBuf>,
    /// Use the prompts of --prompts without the bundled ones; needs at least 12 of each kind. Detectors still learn from
    /// more bundled prompts.
    #[arg(long, requires = "prompts", help_heading = SEARCH)]
    pub no_bundled_prompts: bool,
    /// What the direction is computed from [default: whichever measures strongest].
    #[arg(long, value_enum, help_heading = EDIT)]
    pub direction_source: Option<DirectionSource>,
    /// Safety system prompt to use while extracting the direction: auto, off, or a file.
    #[arg(long, default_value = "auto", value_name = "auto|off|FILE", help_heading = EDIT)]
    pub system_prompt: String,
    /// Files with the system prompts that the model will run under, one prompt per file. Detectors are also trained
    /// under them, and the report shows how often they open there. The system prompt of an Ollama model is always
    /// included.
    #[arg(long, num_args = 1.., value_name = "FILE", help_heading = EDIT)]
    pub context: Vec<PathBuf>,
    /// Flags for models that think before they answer.
    #[command(flatten)]
    pub thinking: ThinkingArgs,
    /// Resume an interrupted search from NAME.search.jsonl, beside the output.
    #[arg(long, help_heading = SEARCH)]
    pub resume: bool,
}

/// The defaults that clap applies when no flag is given.
impl Default for SearchArgs {
    fn default() -> Self {
        let command = Self::augment_args(clap::Command::new("search").no_binary_name(true));
        Self::from_arg_matches(&command.get_matches_from([""; 0])).expect("every flag has a default")
    }
}

/// Flags for models that think before they answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Args)]
pub struct ThinkingArgs {
    /// Whether a model that can think before it answers does so.
    #[arg(long, value_enum, default_value_t, value_name = "auto|on|off", help_heading = MODEL)]
    pub thinking: ThinkingMode,
    /// Token limit for the model's thoughts about one prompt.
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = MODEL, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub think: u32,
}

/// Flags of `search`.
#[derive(Debug, Args)]
pub struct SearchCommandArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    pub model: ModelArg,
    /// File to write the edit to.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Flags of the search.
    #[command(flatten)]
    pub search: SearchArgs,
    /// Print the edit's parameters and the search to stdout, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Overwrite the output.
    #[arg(long)]
    pub overwrite: bool,
    /// Flags that override checks.
    #[command(flatten)]
    pub allow: AllowArgs,
    /// How to run the model.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of every command that runs a model; names as in llama.cpp.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// CPU threads [default: all cores].
    #[arg(short, long, help_heading = MACHINE)]
    pub threads: Option<usize>,
    /// Flags for GPUs and RPC workers.
    #[command(flatten)]
    pub offload: OffloadArgs,
    /// Directory of patch files (*.toml) that extend or replace the built-in ones.
    #[arg(long, value_name = "DIR", help_heading = MACHINE)]
    pub patches: Option<PathBuf>,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model: a file, `ollama:NAME`, or `hf:OWNER/REPO[:QUANTIZATION]`.
    #[arg(required_unless_present = "architectures")]
    pub model: Option<ModelArg>,
    /// List all known architectures instead of a model: which can be edited, and where, and which cannot.
    #[arg(long, conflicts_with_all = ["model", "weights"])]
    pub architectures: bool,
    /// Also read the weights and report whether a direction was removed from them, as in "uncensored" models.
    #[arg(long)]
    pub weights: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Directory of patch files (*.toml) that extend or replace the built-in ones.
    #[arg(long, value_name = "DIR")]
    pub patches: Option<PathBuf>,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The original model.
    pub base: ModelArg,
    /// The edited model.
    pub edited: ModelArg,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Directory of patch files (*.toml) that extend or replace the built-in ones.
    #[arg(long, value_name = "DIR")]
    pub patches: Option<PathBuf>,
}

/// Flags of `reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// The file that `inject` wrote.
    pub file: ModelArg,
    /// The model that the file was made from.
    pub model: ModelArg,
    /// The prompt files that were given as --prompts, if any.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub prompts: Vec<PathBuf>,
    /// The system prompt files that were given as --context, if any.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub context: Vec<PathBuf>,
    /// The file that was given as --system-prompt, if any.
    #[arg(long, value_name = "FILE")]
    pub system_prompt: Option<String>,
    /// The stored edit that was given as --edit, if any.
    #[arg(long, value_name = "FILE")]
    pub edit: Option<PathBuf>,
    /// The importance matrix that was given as --imatrix, if any.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to run the model; `threads` defaults to the recorded number.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Flags of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The report that `inject --report` wrote.
    #[arg(value_name = "REPORT.json")]
    pub report: PathBuf,
    /// Write an HTML page to this file instead of printing the summary to stdout.
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
    /// Overwrite the page.
    #[arg(long)]
    pub overwrite: bool,
}

/// Flags of `undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// The model that was changed in place.
    #[arg(value_name = "FILE")]
    pub model: PathBuf,
    /// Keep the journal (NAME.rosi-undo) after restoring.
    #[arg(long)]
    pub keep_journal: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
