//! Finds the GGUF file of a model by name.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::companions;
use super::host::trimmed;
use super::manifest::{Blob, Manifest};
use super::{Companions, Name, OllamaError};
use crate::gguf::Progress;

/// Maximum number of names in a hint.
const LISTED: usize = 20;

/// A model found in a store.
#[derive(Debug)]
pub struct Model {
    /// Name of the model.
    pub name: Name,
    /// Root folder of the store.
    pub root: PathBuf,
    /// The GGUF file.
    pub gguf: Blob,
    /// Template, system prompt and the other data besides the weights.
    pub companions: Companions,
}

/// The folders to search for models.
#[derive(Debug, Clone)]
pub struct Store {
    roots: Vec<PathBuf>,
}

impl Store {
    /// Uses `OLLAMA_MODELS`, or else Ollama's default folders: in the user's home folder and, on Linux, also in the
    /// home folders of Ollama's service.
    ///
    /// # Errors
    /// Returns [`OllamaError::NoStore`] if neither the variable nor a home folder is set.
    pub fn from_env() -> Result<Self, OllamaError> {
        Self::new(std::env::var_os("OLLAMA_MODELS"), std::env::home_dir())
    }

    /// Uses the store in one folder.
    pub fn at(root: PathBuf) -> Self {
        Self { roots: vec![root] }
    }

    fn new(set: Option<OsString>, home: Option<PathBuf>) -> Result<Self, OllamaError> {
        // A path that is not Unicode is used unchanged.
        let set = set.map(|set| set.to_str().map_or_else(|| set.clone(), |text| trimmed(text).into()));
        if let Some(set) = set.filter(|set| !set.is_empty()) {
            return Ok(Self { roots: vec![set.into()] });
        }
        let mut homes: Vec<PathBuf> = home.into_iter().filter(|home| !home.as_os_str().is_empty()).collect();
        if cfg!(target_os = "linux") {
            homes.extend(["/usr/share/ollama", "/var/lib/ollama"].map(PathBuf::from));
        }
        match homes.is_empty() {
            true => Err(OllamaError::NoStore),
            false => {
                Ok(Self { roots: homes.iter().map(|home| home.join(".ollama").join("models")).collect() })
            }
        }
    }

    /// Finds a model and reads everything except its weights. With `progress`, also verifies the sha256 of the weights.
    ///
    /// # Errors
    /// Returns [`OllamaError`] if the model is missing, damaged or of an unsupported kind.
    pub fn find(&self, name: &Name, progress: Option<&mut Progress<'_>>) -> Result<Model, OllamaError> {
        let (root, manifest) = self.manifest(name)?;
        let found = companions::read(&manifest, name)?;
        let gguf = manifest.blob(&found.model)?;
        if let Some(progress) = progress {
            manifest.check(&found.model, progress)?;
        }
        Ok(Model { name: name.clone(), root, gguf, companions: found.companions })
    }

    fn manifest(&self, name: &Name) -> Result<(PathBuf, Manifest), OllamaError> {
        for root in &self.roots {
            for path in name.manifests().map(|path| root.join(path)) {
                match fs::metadata(&path) {
                    Ok(_) => return Ok((root.clone(), Manifest::read(root, path)?)),
                    Err(error) if absent(&error) => {}
                    Err(source) => return Err(OllamaError::Io { path, source }),
                }
            }
        }
        let (looked, there) = (self.roots.clone(), self.names());
        Err(OllamaError::NotFound { name: name.to_string(), looked, there })
    }

    /// Returns the first [`LISTED`] names in the stores, sorted.
    fn names(&self) -> Vec<String> {
        let folders = self.roots.iter().flat_map(|root| ["manifests-v2", "manifests"].map(|f| root.join(f)));
        let mut names: Vec<String> = folders
            .flat_map(|folder| manifests_below(&folder))
            .filter_map(|parts| Name::from_parts(&parts))
            .map(|name| name.to_string())
            .collect();
        names.sort();
        names.dedup();
        names.truncate(LISTED);
        names
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the `HOST/NAMESPACE/MODEL/TAG` paths below a folder.
fn manifests_below(folder: &Path) -> Vec<[String; 4]> {
    let mut level: Vec<(PathBuf, Vec<String>)> = vec![(folder.to_path_buf(), Vec::new())];
    for _ in 0..4 {
        let entries = level.iter().flat_map(|(path, parts)| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten().take(10_000);
            entries.filter_map(|entry| {
                let parts = parts.iter().cloned().chain([entry.file_name().to_str()?.to_owned()]).collect();
                Some((entry.path(), parts))
            })
        });
        level = entries.collect();
    }
    level.into_iter().filter_map(|(_, parts)| parts.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_those_of_the_system() {
        let set = Store::new(Some("/m".into()), Some("/home/a".into())).unwrap();
        assert_eq!(set.roots, [PathBuf::from("/m")]);
        for quoted in [" /m/my models ", "\"/m/my models\"", "' /m/my models '"] {
            assert_eq!(Store::new(Some(quoted.into()), None).unwrap().roots, [PathBuf::from("/m/my models")]);
        }
        let home = Store::new(Some(" '' ".into()), Some("/home/a".into())).unwrap();
        assert_eq!(home.roots[0], Path::new("/home/a/.ollama/models"));
        assert_eq!(home.roots.len(), if cfg!(target_os = "linux") { 3 } else { 1 });
        let service = Path::new("/usr/share/ollama/.ollama/models");
        assert_eq!(home.roots.iter().any(|root| root == service), cfg!(target_os = "linux"));
        assert_eq!(Store::new(None, None).is_err(), !cfg!(target_os = "linux"));
    }
}
