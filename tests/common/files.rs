//! Files and folders that tests write and look at.

use std::path::{Path, PathBuf};

use rosi_gguf::gguf::{GgufBuilder, sha256_file};

pub fn sha256(path: &Path) -> String {
    sha256_file(path, &mut |_, _| Ok(())).unwrap()
}

/// Returns the paths of all entries of `folder`, sorted.
pub fn listing(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Returns the names of all entries of `folder`, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn gguf_bytes(file: &GgufBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.write_to(&mut bytes).unwrap();
    bytes
}
