//! Finds models on this machine: in caches with the hub's layout, and in llama.cpp's folder of plain files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::fetch::Watch;
use super::select::select;
use super::{Fetched, HubError, HubName, check};
use crate::util::bounded;

/// Maximum size of llama.cpp's metadata file for a download, in bytes; a real one has a few hundred.
const MAX_NOTE: u64 = 1 << 20;
/// Maximum size of a reference file, in bytes; it holds one commit hash.
const MAX_REFERENCE: u64 = 1 << 10;

/// Finds the model in the cache at `cache`, verifying files that were never verified. Returns `None` if the cache has
/// nothing of the repository's revision.
///
/// # Errors
/// Returns [`HubError`] if the cache has the repository but not what `name` asks for, or if a file is damaged.
pub(super) fn in_cache(
    cache: &Path,
    name: &HubName,
    watch: &mut Watch<'_>,
) -> Result<Option<Fetched>, HubError> {
    let folder = repo_folder(cache, name);
    let commit = commit_of(&folder, &name.revision);
    let snapshot = folder.join("snapshots").join(&commit);
    let files = if is_commit(&commit) { files_below(&snapshot) } else { Vec::new() };
    if files.is_empty() {
        return Ok(None);
    }
    let parts = select(name, &files)?;
    for part in &parts {
        let unchecked = check::unchecked(cache, name, part);
        if unchecked.exists() {
            let what = format!("checking {part}");
            check::check(part, &snapshot.join(part), &mut |done, total| watch(&what, done, total))?;
            check::checked(&unchecked);
        }
    }
    Ok(Some(Fetched { path: snapshot.join(&parts[0]), cache: cache.to_path_buf(), from_cache: true }))
}

/// Returns the commit that a revision refers to in the folder of a repository; a commit refers to itself.
fn commit_of(folder: &Path, revision: &str) -> String {
    let reference = folder.join("refs").join(revision);
    if is_commit(revision) || !reference.is_file() {
        return revision.to_owned();
    }
    bounded::read_text(&reference, MAX_REFERENCE).unwrap_or_default().trim().to_owned()
}

/// Returns the folder of a repository in a cache.
pub(super) fn repo_folder(cache: &Path, name: &HubName) -> PathBuf {
    cache.join(format!("models--{}", name.repo.replace('/', "--")))
}

/// Like [`in_cache`], for the plain files in llama.cpp's folder, which have no revisions.
pub(super) fn in_llama(folder: &Path, name: &HubName) -> Result<Option<Fetched>, HubError> {
    let prefix = flat(&name.repo, "");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(&prefix)?.to_owned()))
        .filter(|file| is_of(&folder.join(flat(&name.repo, file)), &name.repo))
        .collect();
    files.sort();
    if files.is_empty() || name.revision != "main" {
        return Ok(None);
    }
    let wanted = name.wanted.as_ref().map(|wanted| wanted.replace('/', "_"));
    let parts = select(&HubName { wanted, ..name.clone() }, &files)?;
    Ok(Some(Fetched {
        path: folder.join(flat(&name.repo, &parts[0])),
        cache: folder.to_path_buf(),
        from_cache: true,
    }))
}

/// Returns the files of a model in llama.cpp's folder, if all of them exist.
pub(super) fn all_in_llama(folder: &Path, repo: &str, parts: &[String]) -> Option<Vec<PathBuf>> {
    let path = |part: &String| Some(folder.join(flat(repo, part))).filter(|path| path.is_file());
    parts.iter().map(path).collect()
}

/// Returns llama.cpp's file name for a file of a repository.
fn flat(repo: &str, file: &str) -> String {
    format!("{repo}_{file}").replace('/', "_")
}

/// Returns whether a file exists and belongs to `repo`. Flattened names are ambiguous (`a/b_c` and `a_b/c` look the
/// same), but llama.cpp stores the URL of some files beside them.
fn is_of(path: &Path, repo: &str) -> bool {
    #[derive(Deserialize)]
    struct Note {
        url: String,
    }
    let mut note = path.as_os_str().to_owned();
    note.push(".json");
    let note = bounded::read(Path::new(&note), MAX_NOTE).ok().flatten();
    let note: Option<Note> = note.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    path.is_file() && note.is_none_or(|note| note.url.contains(&format!("/{repo}/resolve/")))
}

/// Returns whether the text is a commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the paths of a snapshot's files, relative to it, with forward slashes.
fn files_below(folder: &Path) -> Vec<String> {
    const DEPTH: usize = 6;
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), String::new(), 0)];
    let mut seen = HashSet::new();
    while let Some((folder, prefix, depth)) = folders.pop() {
        if !seen.insert(folder.clone()) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            if path.is_file() {
                files.push(name);
            } else if path.is_dir() && depth < DEPTH {
                folders.push((path, format!("{name}/"), depth + 1));
            }
        }
    }
    files.sort();
    files
}
