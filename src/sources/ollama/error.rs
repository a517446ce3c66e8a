//! Why a model of Ollama's cannot be used, or given to it.

use std::io;
use std::path::PathBuf;

use crate::util::hint::Hint;

/// What is wrong with which name, manifest, blob or server.
#[derive(Debug, thiserror::Error)]
pub enum OllamaError {
    /// Not a name.
    #[error("{name:?} is not the name of an Ollama model: {problem}")]
    Name {
        /// As it was given.
        name: String,
        /// Why.
        problem: &'static str,
    },
    /// No store has it.
    #[error("no Ollama store has {name}: looked in {}", places(looked))]
    NotFound {
        /// Its name.
        name: String,
        /// The stores.
        looked: Vec<PathBuf>,
        /// Names that are there.
        there: Vec<String>,
    },
    /// There is no folder to look in.
    #[error("there is no Ollama store: neither OLLAMA_MODELS nor a home folder is set")]
    NoStore,
    /// A manifest says something that cannot be.
    #[error("{}: {key}: {problem}", manifest.display())]
    Manifest {
        /// The manifest.
        manifest: PathBuf,
        /// Where in it.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A model that cannot be edited as it is.
    #[error("{}: {name} {reason}", manifest.display())]
    Unsupported {
        /// The manifest.
        manifest: PathBuf,
        /// The model.
        name: String,
        /// Why.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A text that no Modelfile can hold.
    #[error("{key} cannot be written to a Modelfile: {problem}")]
    Modelfile {
        /// TEMPLATE, SYSTEM, …
        key: String,
        /// Why.
        problem: String,
    },
    /// The GGUF file within has no template.
    #[error(
        "{name} has no chat template in its GGUF file (tokenizer.chat_template); the template that Ollama keeps beside it \
         is in Go's language, which only Ollama can run"
    )]
    GoTemplateOnly {
        /// The model.
        name: String,
    },
    /// `OLLAMA_HOST` is no address.
    #[error("OLLAMA_HOST={host:?} is not a server address")]
    Host {
        /// As it is set.
        host: String,
    },
    /// The server did not do it.
    #[error("the Ollama server at {server} did not {doing}: {problem}")]
    Server {
        /// Its address.
        server: String,
        /// What was asked.
        doing: &'static str,
        /// What it said.
        problem: String,
        /// The command that does the same.
        instead: Option<String>,
    },
    /// The server has a model of that name.
    #[error("the Ollama server at {server} has a model {name} already")]
    Exists {
        /// Its address.
        server: String,
        /// The name.
        name: String,
    },
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
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
                "names look as `ollama list` shows them: llama3.2:1b, user/name:tag, host/user/name:tag".into(),
            ),
            Self::NotFound { there, .. } if there.is_empty() => {
                Some("get it with `ollama pull`, or set OLLAMA_MODELS to the folder that holds blobs/ and manifests/".into())
            }
            Self::NotFound { there, .. } => Some(format!("there are: {}", there.join(", "))),
            Self::NoStore => Some("set OLLAMA_MODELS to the folder that holds blobs/ and manifests/".into()),
            Self::Manifest { .. } => Some("`ollama pull` of the same name repairs a damaged store".into()),
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::GoTemplateOnly { .. } => Some(
                "use a GGUF file of the same model that has a chat template, for example from where it was published"
                    .into(),
            ),
            Self::Host { .. } => Some("it takes [http:// or https://]HOST[:PORT][/PATH]".into()),
            Self::Server { instead, .. } => {
                instead.as_ref().map(|command| format!("the files are written; this does the same: {command}"))
            }
            Self::Exists { .. } => Some("give another name, or pass --overwrite to replace it".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the store belongs to the user that Ollama's service runs as: read it as that user, or as root".into())
            }
            Self::Modelfile { .. } | Self::Io { .. } => None,
        }
    }
}
