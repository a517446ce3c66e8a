//! Resolves a model argument, which is the path of a file, `ollama:NAME`, or `hf:OWNER/REPO`.

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
/// Suffix of the file name of an edited model.
const SUFFIX: &str = "-rosi";

/// A model as named on the command line. An existing file takes precedence over the other meanings of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelArg {
    /// The path of a file.
    File(PathBuf),
    /// The name of a model in Ollama's store, without `ollama:`.
    Ollama(String),
    /// The name of a model on the Hugging Face hub, without `hf:`.
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

/// A resolved model: its file and where it was found.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path of the model file.
    pub path: PathBuf,
    /// The model as the user named it.
    pub display_name: String,
    /// Default path of an edited copy: beside a model given as a file; in the current directory for models given by
    /// name and for files in the hub's cache.
    pub default_output: PathBuf,
    /// Root of the other program's model store that the file is in, where nothing may be changed.
    pub store: Option<PathBuf>,
    /// Template, system prompt and other data that Ollama stores with the model.
    pub companions: Option<Companions>,
    /// Name of the model in Ollama's store.
    pub ollama_name: Option<Name>,
}

/// How thoroughly to check a file in a store against its recorded size and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Compare the size only.
    Size,
    /// Compare the sha256 of the contents.
    Content,
}

/// Errors of resolving a model by name.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An error of Ollama's store or server.
    #[error(transparent)]
    Ollama(#[from] OllamaError),
    /// An error of the Hugging Face hub or its cache.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Progress callback: current step, bytes done, total bytes. Returning an error stops the operation.
pub type Watch<'a> = dyn FnMut(&str, u64, u64) -> io::Result<()> + 'a;

/// Finds the model, downloading it if it is named on the hub and not in the cache.
///
/// # Errors
/// Returns [`SourceError`] if a model given by name cannot be found. The path of a file is not checked.
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

/// Returns the Ollama store that `path` is in, if it is the path of a blob.
fn store_around(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let hex = path.file_name()?.to_str()?.strip_prefix("sha256")?.strip_prefix(['-', ':'])?;
    let blobs = path.parent()?;
    let is_blob = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_blob && blobs.ends_with("blobs")).then(|| blobs.parent().map(Path::to_path_buf)).flatten()
}

/// Returns the hub cache that `path` is in, if it is `models--OWNER--REPO/snapshots/COMMIT/FILE` or a blob.
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
    /// Returns whether `path` is inside another program's store.
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
