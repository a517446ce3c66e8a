//! Reading of evaluation data files.

use std::path::Path;

use super::error::EvalError;
use crate::util::bounded;

/// Maximum size of a data file, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Reads a text file of at most [`MAX_FILE_BYTES`], without a byte order mark.
///
/// # Errors
/// Returns [`EvalError`] if the file cannot be read, is too large, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, EvalError> {
    let read = bounded::read(path, MAX_FILE_BYTES);
    let bytes = read.map_err(|source| EvalError::Read { path: path.into(), source })?;
    let too_large =
        || EvalError::TooLarge { path: path.into(), limit: MAX_FILE_BYTES, found: MAX_FILE_BYTES + 1 };
    let bytes = bytes.ok_or_else(too_large)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&b| b == b'\n').count() + 1;
        EvalError::InvalidUtf8 { path: path.into(), line }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_whole_and_what_is_no_text_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        assert_eq!(read_text(&write("a", b"\xEF\xBB\xBFone\ntwo")).unwrap(), "one\ntwo");
        let error = read_text(&write("b", b"one\ntwo \xFF")).unwrap_err();
        assert!(matches!(error, EvalError::InvalidUtf8 { line: 2, .. }), "{error}");
        assert!(matches!(read_text(&dir.path().join("none")), Err(EvalError::Read { .. })));
        assert!(matches!(read_text(dir.path()), Err(EvalError::Read { .. })));
    }
}
