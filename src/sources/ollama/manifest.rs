//! Reading a manifest, and the blobs that it names. Whoever fills a store is not trusted: sizes are bounded
//! before anything is read, a digest is 64 hexadecimal digits, and what is read must have that digest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::OllamaError;
use crate::gguf::{Progress, sha256_file, sha256_hex};
use crate::util::bounded;

/// A manifest of a real model has a few kB.
const MAX_MANIFEST: u64 = 1 << 20;
/// Templates, system prompts, licenses, examples.
const MAX_TEXT: u64 = 4 << 20;
/// Real ones have under a dozen.
const MAX_LAYERS: usize = 1000;
const LIST: &str = "application/vnd.ollama.manifest.list.v2+json";

/// What a manifest says of one blob.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Layer {
    /// Its kind.
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

/// A blob that is there, with the size that its manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `…/blobs/sha256-<hex>`, or with a colon as Ollama named them once.
    pub path: PathBuf,
    /// 64 hexadecimal digits.
    pub sha256: String,
}

/// The manifest of one model.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Its file.
    pub path: PathBuf,
    /// The folder that has `blobs`.
    root: PathBuf,
    /// What Ollama knows of the model beside its layers.
    pub config: Option<Layer>,
    /// Its blobs.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// Reads the manifest at `path` in the store `root`; of a list, the one that llama.cpp can run.
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
            0 => Err(this.bad("layers", "there are none")),
            n if n > MAX_LAYERS => {
                Err(this.bad("layers", format!("{n} of them, and at most {MAX_LAYERS} are read")))
            }
            _ => Ok(this),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Raw, OllamaError> {
        serde_json::from_slice(bytes)
            .map_err(|error| self.bad("JSON", format!("this is no manifest: {error}")))
    }

    /// One model may have weights for several runners; MLX's are no GGUF files.
    fn choose(&self, children: Vec<Raw>) -> Result<Raw, OllamaError> {
        let wanted = ["ollama", "ggml", "llamacpp"];
        let rank = |child: &Raw| wanted.iter().position(|runner| child.runner.eq_ignore_ascii_case(runner));
        let best = children.into_iter().filter(|child| rank(child).is_some()).min_by_key(|child| rank(child));
        let Some(child) = best else {
            return Err(self.bad("manifests", "none of them is for a runner of GGUF files"));
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

    /// The error of a manifest whose `key` is wrong.
    pub fn bad(&self, key: &str, problem: impl Into<String>) -> OllamaError {
        OllamaError::Manifest { manifest: self.path.clone(), key: key.into(), problem: problem.into() }
    }

    /// What identifies a layer in messages.
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
                    format!("expected a digest, sha256: and 64 hexadecimal digits, found {found:?}"),
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

    /// The blob of a layer, which is there and has the size that the manifest says.
    pub fn blob(&self, layer: &Layer) -> Result<Blob, OllamaError> {
        let key = Self::key(layer);
        let blob = self.blob_path(&layer.digest, &key)?;
        let found = fs::metadata(&blob.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                self.bad(&key, format!("its blob is missing: {}", blob.path.display()))
            }
            _ => OllamaError::Io { path: blob.path.clone(), source },
        })?;
        if !found.is_file() {
            return Err(self.bad(&key, format!("{} is no file", blob.path.display())));
        }
        if found.len() != layer.size {
            let path = blob.path.display();
            return Err(
                self.bad(&key, format!("{path} has {} bytes, and should have {}", found.len(), layer.size))
            );
        }
        Ok(blob)
    }

    /// Compares the sha256 of a layer's blob with its name.
    pub fn check(&self, layer: &Layer, progress: &mut Progress<'_>) -> Result<(), OllamaError> {
        let blob = self.blob(layer)?;
        let found = sha256_file(&blob.path, progress)
            .map_err(|source| OllamaError::Io { path: blob.path.clone(), source })?;
        self.check_digest(&found, &layer.digest, &Self::key(layer))
    }

    /// The bytes of a small blob, checked against its name.
    pub fn bytes(&self, layer: &Layer) -> Result<Vec<u8>, OllamaError> {
        let key = Self::key(layer);
        let blob = self.blob(layer)?;
        let bytes =
            read_bounded(&blob.path, MAX_TEXT).map_err(|problem| problem.in_manifest(&self.path, &key))?;
        self.check_digest(&sha256_hex(&bytes), &layer.digest, &key)?;
        Ok(bytes)
    }

    /// The text of a small blob.
    pub fn text(&self, layer: &Layer) -> Result<String, OllamaError> {
        String::from_utf8(self.bytes(layer)?)
            .map_err(|_| self.bad(&Self::key(layer), "its blob is no UTF-8 text"))
    }
}

/// Why a small file could not be read.
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
            Self::Io(path, _) => format!("{} is missing", path.display()),
            Self::NotAFile => "it is no file".into(),
            Self::TooLarge(most) => format!("it is larger than {most} bytes"),
        };
        OllamaError::Manifest { manifest: manifest.to_path_buf(), key: key.into(), problem }
    }
}

/// Reads a regular file of at most `most` bytes.
fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, Unread> {
    let io = |error| Unread::Io(path.to_path_buf(), error);
    // Asked before opening, because opening a named pipe would wait for a writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Unread::NotAFile);
    }
    bounded::read(path, most).map_err(io)?.ok_or(Unread::TooLarge(most))
}
