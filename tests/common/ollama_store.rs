//! Folders laid out like Ollama's model store.

use std::path::{Path, PathBuf};

use rosi_gguf::gguf::sha256_hex;
use serde_json::{Value, json};

use super::files::sha256;

/// The root folder of a store.
pub struct Store(pub PathBuf);

impl Store {
    pub fn new(folder: &Path) -> Self {
        let root = folder.join("models");
        std::fs::create_dir_all(root.join("blobs")).unwrap();
        Self(root)
    }

    /// Returns the path of a blob.
    pub fn blob(&self, sha256: &str) -> PathBuf {
        self.0.join("blobs").join(format!("sha256-{sha256}"))
    }

    /// Writes `bytes` as a blob and returns a layer that refers to it.
    pub fn layer(&self, kind: &str, bytes: &[u8]) -> Value {
        let sha256 = sha256_hex(bytes);
        std::fs::write(self.blob(&sha256), bytes).unwrap();
        layer(kind, &sha256, bytes.len() as u64)
    }

    /// Links `file` as a blob and returns a layer that refers to it.
    pub fn linked(&self, kind: &str, file: &Path) -> Value {
        let sha256 = sha256(file);
        if !self.blob(&sha256).exists() {
            std::os::unix::fs::symlink(file, self.blob(&sha256)).unwrap();
        }
        layer(kind, &sha256, std::fs::metadata(file).unwrap().len())
    }

    /// Writes the manifest of `name`, which has the form `HOST/NAMESPACE/MODEL/TAG`, and returns its path.
    pub fn manifest(&self, name: &str, layers: &[Value]) -> PathBuf {
        let config = self.layer("config", br#"{"model_format":"gguf","model_family":"llama"}"#);
        let text = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config,
            "layers": layers,
        });
        self.raw("manifests", name, text.to_string().as_bytes())
    }

    /// Writes `bytes` as the manifest of `name` below the folder `layout`, and returns its path.
    pub fn raw(&self, layout: &str, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(layout).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn layer(kind: &str, sha256: &str, size: u64) -> Value {
    let media_type = match kind {
        "config" => "application/vnd.docker.container.image.v1+json".to_owned(),
        kind if kind.contains('/') => kind.to_owned(),
        kind => format!("application/vnd.ollama.image.{kind}"),
    };
    json!({ "mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": size })
}
