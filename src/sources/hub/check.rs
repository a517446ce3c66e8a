//! Tracks downloaded files whose sha256 has not been verified yet.

use std::path::{Path, PathBuf};

use super::local::repo_folder;
use super::{HubError, HubName};
use crate::gguf::{Progress, sha256_file};

/// Returns the path of the marker file that says that `part` has not been verified yet.
pub(super) fn unchecked(cache: &Path, name: &HubName, part: &str) -> PathBuf {
    repo_folder(cache, name).join(format!(".unchecked-{}", part.replace('/', "--")))
}

/// Creates the marker file.
pub(super) fn mark(unchecked: &Path, cache: &Path) -> Result<(), HubError> {
    let folder = unchecked.parent().unwrap_or(unchecked);
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(unchecked, b""));
    made.map_err(|source| HubError::Cache { path: cache.to_path_buf(), source })
}

/// Removes the marker file once the file is verified.
pub(super) fn checked(unchecked: &Path) {
    if let Err(error) = std::fs::remove_file(unchecked) {
        tracing::debug!("{}: {error}", unchecked.display());
    }
}

/// Verifies a downloaded file against the name of its blob, which for large files is their sha256. Removes a damaged
/// file.
pub(super) fn check(part: &str, path: &Path, progress: &mut Progress<'_>) -> Result<(), HubError> {
    let unreadable = |source| HubError::Cache { path: path.to_path_buf(), source };
    let blob = path.canonicalize().map_err(unreadable)?;
    let expected = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = sha256_file(&blob, progress).map_err(unreadable)?;
    if found.eq_ignore_ascii_case(&expected) {
        return Ok(());
    }
    for path in [path, &blob] {
        std::fs::remove_file(path).map_err(unreadable)?;
    }
    Err(HubError::Damaged { file: part.into(), expected, found })
}
