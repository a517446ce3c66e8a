//! Reading files whose size is not trusted.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of the file at `path`; `None` when it has more than `most`. Pipes and devices have no length to
/// check before.
///
/// # Errors
/// Those of the system.
pub fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
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
    }
}
