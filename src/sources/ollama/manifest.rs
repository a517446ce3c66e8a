//! Reads a manifest and the blobs that it names. The store's contents are not trusted: sizes are limited before
//! anything is read, a digest must be 64 hexadecimal digits, and blobs that are read must match their digests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::OllamaError;
use crate::gguf::{Progress, sha256_file, sha256_hex};
use crate::util::bounded;

/// Maximum size of a manifest, in bytes; real ones have a few kB.
const MAX_MANIFEST: u64 = 1 << 20;
/// Maximum size of a text blob (template, system prompt, license, messages), in bytes.
const MAX_TEXT: u64 = 4 << 20;
/// Maximum number of layers; real models have under a dozen.
const MAX_LAYERS: usize = 1000;
const LIST: &str = "application/vnd.ollama.manifest.list.v2+json";

/// A manifest's entry for one blob.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Layer {
    /// Media type of the blob.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Option<Layer>,
    #[serde(default)]
    layers: Option<Vec<Layer>>,
    #[serde(default)]
    runner: String,
    digest: Option<String>,
    #[serde(default)]
    manifests: Vec<Raw>,
}

/// An existing blob whose size matches its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `…/blobs/sha256-<hex>`, or with a colon as in older versions of Ollama.
    pub path: PathBuf,
    /// sha256 of the contents, 64 hexadecimal digits.
    pub sha256: String,
}

/// The manifest of one model.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Path of the manifest.
    pub path: PathBuf,
    /// The store's root folder, which contains `blobs`.
    root: PathBuf,
    /// Blob of the model's configuration, if any.
    pub config: Option<Layer>,
    /// The model's layers.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// Reads the manifest at `path` in the store `root`. From a manifest list, takes the entry that llama.cpp can run.
    pub fn read(root: &Path, path: PathBuf) -> Result<Self, OllamaError> {
        let bytes = read_bounded(&path, MAX_MANIFEST)
            .map_err(|problem| problem.in_manifest(&path, "the manifest"))?;
        let mut this = Self { path, root: root.to_path_buf(), config: None, layers: Vec::new() };
        let mut raw: Raw = this.parse(&bytes)?;
        if raw.media_type == LIST {
            raw = this.choose(raw.manifests)?;
        }
        this.config = raw.config;
        this.layers = raw.layers.unwrap_or_default();
        match this.layers.len() {
            0 => Err(this.bad("layers", "expected at least one, found none")),
            n if n > MAX_LAYERS => {
                Err(this.bad("layers", format!("expected at most {MAX_LAYERS}, found {n}")))
            }
            _ => Ok(this),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Raw, OllamaError> {
        serde_json::from_slice(bytes).map_err(|error| self.bad("JSON", format!("invalid manifest: {error}")))
    }

    /// Chooses the entry for a runner of GGUF files. A model may also have weights for other runners, such as MLX.
    fn choose(&self, children: Vec<Raw>) -> Result<Raw, OllamaError> {
        let wanted = ["ollama", "ggml", "llamacpp"];
        let rank = |child: &Raw| wanted.iter().position(|runner| child.runner.eq_ignore_ascii_case(runner));
        let best = children.into_iter().filter(|child| rank(child).is_some()).min_by_key(|child| rank(child));
        let Some(child) = best else {
            return Err(self.bad("manifests", "expected an entry for a runner of GGUF files, found none"));
        };
        match &child.digest {
            Some(digest) if child.layers.is_none() => {
                let path = self.blob_path(digest, "manifests.digest")?.path;
                let bytes = read_bounded(&path, MAX_MANIFEST)
                    .map_err(|problem| problem.in_manifest(&self.path, "manifests.digest"))?;
                self.check_digest(&sha256_hex(&bytes), digest, "manifests.digest")?;
                self.parse(&bytes)
            }
            _ => Ok(child),
        }
    }

    /// Returns the error for an invalid entry `key` of the manifest.
    pub fn bad(&self, key: &str, problem: impl Into<String>) -> OllamaError {
        OllamaError::Manifest { manifest: self.path.clone(), key: key.into(), problem: problem.into() }
    }

    /// Returns a description of a layer for messages.
    pub fn key(layer: &Layer) -> String {
        format!("layer {:?}", layer.media_type.chars().take(100).collect::<String>())
    }

    fn blob_path(&self, digest: &str, key: &str) -> Result<Blob, OllamaError> {
        let hex = digest.strip_prefix("sha256:").or_else(|| digest.strip_prefix("sha256-"));
        let sound = |hex: &&str| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        match hex.filter(sound) {
            Some(hex) => {
                let sha256 = hex.to_ascii_lowercase();
                let blobs = self.root.join("blobs");
                let [path, old] = ['-', ':'].map(|between| blobs.join(format!("sha256{between}{sha256}")));
                Ok(Blob { path: if !path.exists() && old.exists() { old } else { path }, sha256 })
            }
            None => {
                let found: String = digest.chars().take(100).collect();
                Err(self.bad(
                    key,
                    format!("expected a digest of sha256: and 64 hexadecimal digits, found {found:?}"),
                ))
            }
        }
    }

    fn check_digest(&self, found: &str, digest: &str, key: &str) -> Result<(), OllamaError> {
        let expected = self.blob_path(digest, key)?;
        if found == expected.sha256 {
            return Ok(());
        }
        let path = expected.path.display();
        Err(self.bad(key, format!("{path} is damaged: its sha256 is {found}")))
    }

    /// Returns the blob of a layer, after checking that it exists with the size in the manifest.
    pub fn blob(&self, layer: &Layer) -> Result<Blob, OllamaError> {
        let key = Self::key(layer);
        let blob = self.blob_path(&layer.digest, &key)?;
        let found = fs::metadata(&blob.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.bad(&key, format!("missing blob {}", blob.path.display())),
            _ => OllamaError::Io { path: blob.path.clone(), source },
        })?;
        if !found.is_file() {
            return Err(self.bad(&key, format!("expected a regular file at {}", blob.path.display())));
        }
        if found.len() != layer.size {
            let path = blob.path.display();
            return Err(
                self.bad(&key, format!("{path}: expected {} bytes, found {}", layer.size, found.len()))
            );
        }
        Ok(blob)
    }

    /// Compares the sha256 of a layer's blob with its digest.
    pub fn check(&self, layer: &Layer, progress: &mut Progress<'_>) -> Result<(), OllamaError> {
        let blob = self.blob(layer)?;
        let found = sha256_file(&blob.path, progress)
            .map_err(|source| OllamaError::Io { path: blob.path.clone(), source })?;
        self.check_digest(&found, &layer.digest, &Self::key(layer))
    }

    /// Returns the contents of a small blob, after checking its digest.
    pub fn bytes(&self, layer: &Layer) -> Result<Vec<u8>, OllamaError> {
        let key = Self::key(layer);
        let blob = self.blob(layer)?;
        let bytes =
            read_bounded(&blob.path, MAX_TEXT).map_err(|problem| problem.in_manifest(&self.path, &key))?;
        self.check_digest(&sha256_hex(&bytes), &layer.digest, &key)?;
        Ok(bytes)
    }

    /// Returns the text of a small blob, after checking its digest.
    pub fn text(&self, layer: &Layer) -> Result<String, OllamaError> {
        String::from_utf8(self.bytes(layer)?)
            .map_err(|_| self.bad(&Self::key(layer), "expected UTF-8 text, found invalid bytes"))
    }
}

/// Errors of reading a small file.
enum Unread {
    Io(PathBuf, io::Error),
    NotAFile,
    TooLarge(u64),
}

impl Unread {
    fn in_manifest(self, manifest: &Path, key: &str) -> OllamaError {
        let problem = match self {
            Self::Io(path, source) if source.kind() != io::ErrorKind::NotFound => {
                return OllamaError::Io { path, source };
            }
            Self::Io(path, _) => format!("missing file {}", path.display()),
            Self::NotAFile => "expected a regular file".into(),
            Self::TooLarge(most) => format!("expected at most {most} bytes, found more"),
        };
        OllamaError::Manifest { manifest: manifest.to_path_buf(), key: key.into(), problem }
    }
}

/// Reads a regular file of at most `most` bytes.
fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, Unread> {
    let io = |error| Unread::Io(path.to_path_buf(), error);
    // Checked before opening, because opening a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Unread::NotAFile);
    }
    bounded::read(path, most).map_err(io)?.ok_or(Unread::TooLarge(most))
}
