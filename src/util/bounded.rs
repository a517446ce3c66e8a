//! Reading files whose size is not trusted.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads the file at `path`; returns `None` if it has more than `most` bytes. Limits the bytes read instead of checking
/// the length first, because pipes and devices have none.
///
/// # Errors
/// Returns the I/O error if the file cannot be opened or read.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

/// Reads the text file at `path`.
///
/// # Errors
/// Returns the I/O error if the file cannot be opened or read, or an error of kind
/// [`InvalidData`](io::ErrorKind::InvalidData) if it has more than `most` bytes or is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let bytes =
        read(path, most)?.ok_or_else(|| invalid(format!("expected at most {most} bytes, found more")))?;
    String::from_utf8(bytes).map_err(|_| invalid("expected UTF-8 text, found invalid bytes".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"four").unwrap();
        assert_eq!(read(file.path(), 4).unwrap().unwrap(), b"four");
        assert_eq!(read(file.path(), 3).unwrap(), None);
        assert!(read(&file.path().with_extension("none"), 4).is_err());
        assert_eq!(read_text(file.path(), 4).unwrap(), "four");
        assert!(read_text(file.path(), 3).unwrap_err().to_string().contains("at most 3 bytes"));
        std::fs::write(file.path(), b"\xff").unwrap();
        assert!(read_text(file.path(), 3).unwrap_err().to_string().contains("UTF-8"));
    }
}
