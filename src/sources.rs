//! What a user may call a model: the path of a file, `ollama:NAME`, or `hf:OWNER/REPO`; and where it leads.

pub mod hub;
pub mod ollama;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::{self, suffixed};
use hub::{Hub, HubError, HubName};
use ollama::{Companions, Name, OllamaError, Store};

const OLLAMA: &str = "ollama:";
const HUB: &str = "hf:";
/// What is put after the name of an edited model.
const SUFFIX: &str = "-rosi";

/// A model as it is named on the command line. A file that is there wins over what its name could mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelArg {
    /// A path.
    File(PathBuf),
    /// The name of a model in Ollama's store, without `ollama:`.
    Ollama(String),
    /// The name of a model on the hub, without `hf:`.
    Hub(String),
}

impl From<OsString> for ModelArg {
    fn from(text: OsString) -> Self {
        let name = |prefix| text.to_str().and_then(|text| text.strip_prefix(prefix)).map(str::to_owned);
        let path = Path::new(&text);
        match (name(OLLAMA), name(HUB)) {
            (Some(name), _) if !path.exists() => Self::Ollama(name),
            (_, Some(name)) if !path.exists() => Self::Hub(name),
            _ => Self::File(text.into()),
        }
    }
}

impl From<PathBuf> for ModelArg {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for ModelArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Ollama(name) => write!(f, "{OLLAMA}{name}"),
            Self::Hub(name) => write!(f, "{HUB}{name}"),
        }
    }
}

/// A model file, and what is known of where it was found.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// As the user named it.
    pub display_name: String,
    /// Where an edited copy goes by default: beside a file, in the current folder for all others and for what lies in the
    /// hub's cache.
    pub default_output: PathBuf,
    /// The folder that another program keeps it in, where nothing may be changed.
    pub store: Option<PathBuf>,
    /// What stands beside the weights of a model of Ollama's.
    pub companions: Option<Companions>,
    /// Its name there.
    pub ollama_name: Option<Name>,
}

/// How much of a file in a store is compared with the name that it has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Its size.
    Size,
    /// All of it, by its sha256.
    Content,
}

/// Why a model could not be found by its name.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A model of Ollama's.
    #[error(transparent)]
    Ollama(#[from] OllamaError),
    /// A model of the hub.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// What is being done, bytes done, bytes in all; an error stops it.
pub type Watch<'a> = dyn FnMut(&str, u64, u64) -> io::Result<()> + 'a;

/// Finds the model, and downloads it where its name is one of the hub.
///
/// # Errors
/// [`SourceError`]. The path of a file is not looked at.
pub fn resolve(model: &ModelArg, check: Check, watch: &mut Watch<'_>) -> Result<Source, SourceError> {
    match model {
        ModelArg::File(path) => {
            gguf::recover(path);
            let cache = cache_around(path);
            let beside = match &cache {
                Some(_) => path.file_name().map(PathBuf::from).unwrap_or_default(),
                None => path.clone(),
            };
            Ok(Source {
                path: path.clone(),
                display_name: model.to_string(),
                default_output: suffixed(&beside, SUFFIX),
                store: store_around(path).or(cache),
                companions: None,
                ollama_name: None,
            })
        }
        ModelArg::Ollama(name) => {
            let name = Name::parse(name)?;
            let mut progress = |done, total| watch(&format!("checking {name}"), done, total);
            let progress =
                (check == Check::Content).then_some(&mut progress as &mut crate::gguf::Progress<'_>);
            let found = Store::from_env()?.find(&name, progress)?;
            Ok(Source {
                path: found.gguf.path,
                display_name: model.to_string(),
                default_output: format!("{}{SUFFIX}.gguf", name.file_stem()).into(),
                store: Some(found.root),
                companions: Some(found.companions),
                ollama_name: Some(name),
            })
        }
        ModelArg::Hub(name) => {
            let found = Hub::from_env()?.get(&HubName::parse(name)?, watch)?;
            let file = found.path.file_name().map(PathBuf::from).unwrap_or_default();
            Ok(Source {
                default_output: suffixed(&file, SUFFIX),
                path: found.path,
                display_name: model.to_string(),
                store: Some(found.cache),
                companions: None,
                ollama_name: None,
            })
        }
    }
}

/// The store that a blob of Ollama's lies in, when one is given by its path.
fn store_around(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let hex = path.file_name()?.to_str()?.strip_prefix("sha256")?.strip_prefix(['-', ':'])?;
    let blobs = path.parent()?;
    let is_blob = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_blob && blobs.ends_with("blobs")).then(|| blobs.parent().map(Path::to_path_buf)).flatten()
}

/// The hub's cache that a file lies in, when one is given by its path there: `models--OWNER--REPO/snapshots/COMMIT/FILE`, or a
/// blob.
fn cache_around(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let is_named = |folder: &Path, test: &dyn Fn(&str) -> bool| {
        folder.file_name().and_then(|name| name.to_str()).is_some_and(test)
    };
    let inside = |folder: &&Path| {
        is_named(folder, &|name| ["snapshots", "blobs"].contains(&name))
            && folder.parent().is_some_and(|repo| is_named(repo, &|name| name.starts_with("models--")))
    };
    let folder = path.ancestors().skip(1).find(inside)?;
    Some(folder.parent()?.parent()?.to_path_buf())
}

impl Source {
    /// Whether a file at `path` would lie in the folder of another program.
    pub fn is_in_store(&self, path: &Path) -> bool {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let store = self.store.as_ref().and_then(|store| store.canonicalize().ok());
        let folder = folder.canonicalize().ok();
        store.zip(folder).is_some_and(|(store, folder)| folder.starts_with(store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_files() {
        let arg = |text: &str| ModelArg::from(OsString::from(text));
        assert_eq!(arg("ollama:m:1b"), ModelArg::Ollama("m:1b".into()));
        assert_eq!(arg("hf:a/b"), ModelArg::Hub("a/b".into()));
        assert_eq!(arg("./ollama:m"), ModelArg::File("./ollama:m".into()));
        assert_eq!(arg("a.gguf"), ModelArg::File("a.gguf".into()));
        for text in ["ollama:m:1b", "hf:a/b@c:d", "x/y.gguf"] {
            assert_eq!(arg(text).to_string(), text);
        }
    }

    #[test]
    fn output_stands_beside_the_input() {
        let output = |path: &str| {
            let source = resolve(&ModelArg::File(path.into()), Check::Size, &mut |_, _, _| Ok(()));
            source.unwrap().default_output
        };
        assert_eq!(output("/m/a.Q4_K_M.gguf"), Path::new("/m/a.Q4_K_M-rosi.gguf"));
        assert_eq!(output("/m/a-00002-of-00003.gguf"), Path::new("/m/a-rosi-00001-of-00003.gguf"));
    }

    #[test]
    fn output_of_a_file_in_the_hubs_cache_goes_to_the_current_folder() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--me--tiny");
        let snapshot = repo.join("snapshots").join("0123").join("sub");
        std::fs::create_dir_all(&snapshot).unwrap();
        let source =
            |path: &Path| resolve(&ModelArg::File(path.into()), Check::Size, &mut |_, _, _| Ok(())).unwrap();
        let found = source(&snapshot.join("m-Q4_0.gguf"));
        assert_eq!(found.default_output, Path::new("m-Q4_0-rosi.gguf"));
        assert_eq!(found.store.as_deref(), Some(dir.path()));
        assert!(found.is_in_store(&snapshot.join("out.gguf")));
        assert_eq!(source(&repo.join("blobs").join("ab")).store.as_deref(), Some(dir.path()));
        let beside = source(&dir.path().join("snapshots").join("m.gguf"));
        assert_eq!(beside.store, None);
        assert_eq!(beside.default_output, dir.path().join("snapshots").join("m-rosi.gguf"));
    }

    #[test]
    fn a_blob_given_by_its_path_is_in_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let [blob, old] = ['-', ':'].map(|between| blobs.join(format!("sha256{between}{}", "a".repeat(64))));
        for blob in [&blob, &old] {
            std::fs::write(blob, b"x").unwrap();
        }
        let source =
            |path: &Path| resolve(&ModelArg::File(path.into()), Check::Size, &mut |_, _, _| Ok(())).unwrap();
        assert!(source(&blob).is_in_store(&blobs.join("out.gguf")));
        assert!(source(&old).is_in_store(&blobs.join("out.gguf")));
        assert!(source(&blob).is_in_store(&dir.path().join("out.gguf")));
        assert!(!source(&blob).is_in_store(Path::new("out.gguf")));
        assert!(!source(&dir.path().join("m.gguf")).is_in_store(&dir.path().join("out.gguf")));
    }
}
