//! Errors of reading Ollama's store and using its server.

use std::io;
use std::path::PathBuf;

use crate::util::hint::Hint;

/// Errors of reading Ollama's store and using its server.
#[derive(Debug, thiserror::Error)]
pub enum OllamaError {
    /// The name is invalid.
    #[error("invalid Ollama model name {name:?}: {problem}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No store has the model.
    #[error("model {name} not found in the Ollama store: looked in {}", places(looked))]
    NotFound {
        /// The name of the model.
        name: String,
        /// The stores that were searched.
        looked: Vec<PathBuf>,
        /// The first names that the stores have.
        there: Vec<String>,
    },
    /// No location of a store is known.
    #[error("no location for the Ollama store: expected OLLAMA_MODELS or a home directory, found none")]
    NoStore,
    /// A manifest or a blob that it names is invalid.
    #[error("{}: {key}: {problem}", manifest.display())]
    Manifest {
        /// The manifest.
        manifest: PathBuf,
        /// The invalid entry.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model is of a kind that cannot be edited.
    #[error("{}: {name} {reason}", manifest.display())]
    Unsupported {
        /// The manifest.
        manifest: PathBuf,
        /// The model.
        name: String,
        /// The reason, which continues a sentence that begins with the name.
        reason: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// A text cannot be quoted in a Modelfile.
    #[error("{key} cannot be written to a Modelfile: {problem}")]
    Modelfile {
        /// The instruction: TEMPLATE, SYSTEM, …
        key: String,
        /// What is wrong with the text.
        problem: String,
    },
    /// The GGUF file has no chat template, and Ollama's own is in Go's template language.
    #[error(
        "{name} has no chat template in its GGUF file (tokenizer.chat_template), only one in Go's template \
         language, which only Ollama can run"
    )]
    GoTemplateOnly {
        /// The model.
        name: String,
    },
    /// `OLLAMA_HOST` is not a valid address.
    #[error("OLLAMA_HOST: expected a server address, found {host:?}")]
    Host {
        /// The value of the variable.
        host: String,
    },
    /// A request to the server failed.
    #[error("the Ollama server at {server} could not {doing}: {problem}")]
    Server {
        /// Address of the server.
        server: String,
        /// The requested action, a verb phrase.
        doing: &'static str,
        /// The server's message or the network error.
        problem: String,
        /// A command that does the same.
        instead: Option<String>,
    },
    /// The server already has a model of that name.
    #[error("the Ollama server at {server} already has a model {name}")]
    Exists {
        /// Address of the server.
        server: String,
        /// Name of the model.
        name: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn places(looked: &[PathBuf]) -> String {
    looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Hint for OllamaError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some(
                "use a name as shown by `ollama list`: llama3.2:1b, user/name:tag, host/user/name:tag".into(),
            ),
            Self::NotFound { there, .. } if there.is_empty() => {
                Some("run `ollama pull` or set OLLAMA_MODELS to the folder with blobs/ and manifests/".into())
            }
            Self::NotFound { there, .. } => Some(format!("available: {}", there.join(", "))),
            Self::NoStore => Some("set OLLAMA_MODELS to the folder with blobs/ and manifests/".into()),
            Self::Manifest { .. } => Some("run `ollama pull` for the same name to repair the store".into()),
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::GoTemplateOnly { .. } => Some(
                "use a GGUF file of the same model with a chat template, for example from its publisher"
                    .into(),
            ),
            Self::Host { .. } => Some("use the format [http:// or https://]HOST[:PORT][/PATH]".into()),
            Self::Server { instead, .. } => {
                instead.as_ref().map(|command| format!("the files are written; register them with {command}"))
            }
            Self::Exists { .. } => Some("choose another name, or replace it with --overwrite".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the store belongs to Ollama's service: run this as its user, or as root".into())
            }
            Self::Modelfile { .. } | Self::Io { .. } => None,
        }
    }
}
