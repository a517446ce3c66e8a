//! The error type of all commands: the message of the failed stage, with a separate hint.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::arch::patches::PatchError;
use crate::arch::plan::PlanError;
use crate::eval::EvalError;
use crate::eval::prompts::{PromptError, PromptKind};
use crate::gguf::in_place::UndoError;
use crate::gguf::{GgufError, LockError};
use crate::imatrix::ImatrixError;
use crate::llama::LlamaError;
use crate::method::abliteration::AblationError;
use crate::method::direction::DirectionError;
use crate::method::edit::EditError;
use crate::method::gate::GateError;
use crate::method::search::SearchError;
use crate::method::search::journal::JournalError;
use crate::method::stored::StoredError;
use crate::method::verify::VerifyError;
use crate::pipeline::reproduce::ReproduceError;
use crate::release::ReleaseError;
use crate::report::ReportError;
use crate::sources::SourceError;
use crate::sources::hub::HubError;
use crate::sources::ollama::OllamaError;
use crate::util::hint::Hint;
use crate::util::interrupt::Interrupted;

/// Exit status of a command that returned no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Success.
    Done,
    /// The file does not contain the whole edit or, for `verify`, differs from its base in other ways, too.
    NotVerified,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Done => Self::SUCCESS,
            ExitStatus::NotVerified => Self::from(3),
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant is its stage's error, documented there
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error("{}: {source}", path.display())]
    Plan { path: PathBuf, source: PlanError },
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Direction(#[from] DirectionError),
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The importance matrix could not be used.
    #[error(transparent)]
    Imatrix(#[from] ImatrixError),
    /// A gate could not be trained.
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Eval(EvalError),
    /// The weights could not be searched for an ablated direction.
    #[error(transparent)]
    Ablation(#[from] AblationError),
    /// The stored edit could not be used.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The release could not be made or continued.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The report could not be read or shown.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A file could not be reproduced.
    #[error(transparent)]
    Reproduce(#[from] ReproduceError),
    /// The search could not be resumed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another run is using the same output.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file could not be changed in place, or restored.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// An Ollama model or the Ollama server could not be used.
    #[error(transparent)]
    Ollama(#[from] OllamaError),
    /// A model could not be obtained from the Hugging Face hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The value of a flag is invalid.
    #[error("{flag}: {problem}")]
    Option { flag: &'static str, problem: String, hint: Option<String> },
    /// The model cannot be given a prompt.
    #[error("cannot ask the model a {kind} prompt{}: {source}", about(start, source))]
    Unaskable { kind: PromptKind, start: String, source: LlamaError },
    /// The model file has no chat template.
    #[error(
        "{} has no chat template (tokenizer.chat_template): it is a base model, or the key is missing",
        path.display()
    )]
    NoTemplate { path: PathBuf },
    /// The model is already injected.
    #[error("{} is already injected (rosi.version = {version}, {size})", path.display())]
    Injected { path: PathBuf, version: String, size: String },
    /// No feed-forward network computes a known function.
    #[error(
        "none of the {tried} feed-forward networks examined computes a known function \
         (architecture {architecture})"
    )]
    NoNetwork { architecture: String, tried: usize },
    /// The model does not refuse.
    #[error(
        "this model refuses {plain} of {total} harmful prompts{}: there is no refusal to amplify",
        prompted.map_or(String::new(), |n| format!(", {n} of {total} under the system prompt"))
    )]
    NoRefusal { plain: u64, prompted: Option<u64>, total: u64 },
    /// No layer and strength helped.
    #[error(
        "none of {trials} edits made the model refuse more harmful prompts (base: {base}) within \
         --max-kl {max_kl} and --max-false-refusal {max_false_refusal}{best}"
    )]
    NoGain { trials: usize, base: String, max_kl: f64, max_false_refusal: f64, best: String },
    /// The written file refuses less than the base.
    #[error(
        "the written file was discarded: it refuses {edited} of the bundled harmful prompts, its base {base}"
    )]
    LessSafe { edited: String, base: String },
    /// The written file differs where it must not.
    #[error("the written file was discarded: it differs from its base outside the edit ({what})")]
    Damaged { what: String },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Returns the beginning of the prompt, unless the message of `source` already quotes it.
fn about(start: &str, source: &LlamaError) -> String {
    match source {
        LlamaError::PromptTooLong { .. } => String::new(),
        _ => format!(" ({start:?})"),
    }
}

/// Maps an error to the same variant regardless of the stage that it occurred in.
impl From<SearchError> for Error {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Llama(error) => error.into(),
            SearchError::Edit(error) => error.into(),
        }
    }
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Ollama(error) => error.into(),
            SourceError::Hub(error) => error.into(),
        }
    }
}

impl From<EvalError> for Error {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Llama(error) => Self::Llama(error),
            error => Self::Eval(error),
        }
    }
}

impl Error {
    /// Returns the exit code: 1 for user errors, 2 for internal errors.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Damaged { .. } | Self::Llama(LlamaError::Callback) | Self::Report(ReportError::Page(_)) => {
                ExitCode::from(2)
            }
            _ => ExitCode::from(1),
        }
    }

    /// Returns the underlying error if it provides its own hints.
    fn stage(&self) -> Option<&dyn Hint> {
        Some(match self {
            Self::Gguf(error) => error,
            Self::Patch(error) => error,
            Self::Prompt(error) => error,
            Self::Llama(error) => error,
            Self::Edit(error) => error,
            Self::Verify(error) => error,
            Self::Gate(error) => error,
            Self::Imatrix(error) => error,
            Self::Eval(error) => error,
            Self::Ablation(error) => error,
            Self::Stored(error) => error,
            Self::Journal(error) => error,
            Self::Lock(error) => error,
            Self::Release(error) => error,
            Self::Report(error) => error,
            Self::Reproduce(error) => error,
            Self::Undo(error) => error,
            Self::Ollama(error) => error,
            Self::Hub(error) => error,
            Self::Plan { source, .. } => source,
            Self::Unaskable { source, .. } => source,
            _ => return None,
        })
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<String> {
        if let Some(stage) = self.stage() {
            return stage.hint();
        }
        match self {
            Self::Option { hint, .. } => hint.clone(),
            Self::NoTemplate { .. } => Some(
                "use the instruction-tuned (\"-it\", \"-Instruct\", \"-chat\") version of the model".into(),
            ),
            Self::Injected { .. } => {
                Some("inject the original file, or pass --allow-injected to add a second edit".into())
            }
            Self::NoNetwork { .. } => {
                Some("use --method contrast, which edits the residual writers instead".into())
            }
            Self::NoRefusal { .. } => Some(
                "this tool cannot teach refusal to a model that never learned it: use a larger or better \
                 aligned model, or pass --allow-no-refusal to search anyway"
                    .into(),
            ),
            Self::NoGain { .. } => Some(
                "allow a larger change with --max-kl or --max-false-refusal, or supply prompts that suit the \
                 model with --prompts"
                    .into(),
            ),
            Self::LessSafe { .. } => {
                Some("try a smaller --strength, another --layer, or a quantization with more bits".into())
            }
            Self::Damaged { .. } => {
                Some("this is a bug: please report it with the output of `rosi-gguf inspect`".into())
            }
            _ => None,
        }
    }
}
