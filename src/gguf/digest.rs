//! SHA-256 of files and bytes, in lower-case hexadecimal.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Progress;

/// Returns the SHA-256 of a file, read in 1 MiB pieces. `progress` receives the bytes done and the
/// total, and may stop the work by returning an error.
pub fn sha256_file(path: &Path, progress: &mut Progress<'_>) -> io::Result<String> {
    sha256_files(&[path], progress)
}

fn add_file(
    hash: &mut Sha256,
    path: &Path,
    done: &mut u64,
    total: u64,
    progress: &mut Progress<'_>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if n == 0 {
            return Ok(());
        }
        hash.update(&buffer[..n]);
        *done += n as u64;
        progress(*done, total)?;
    }
}

/// Returns the SHA-256 of the concatenation of several files.
pub fn sha256_files(paths: &[&Path], progress: &mut Progress<'_>) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut total = 0;
    for path in paths {
        total += std::fs::metadata(path)?.len();
    }
    let mut done = 0;
    for path in paths {
        add_file(&mut hash, path, &mut done, total, progress)?;
    }
    Ok(hex(&hash.finalize()))
}

/// Returns the SHA-256 of bytes in memory.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
