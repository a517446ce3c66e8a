//! Positioned reads and writes; all disk access of an in-place change goes through here.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

/// Number of bytes copied at a time.
pub(super) const CHUNK: u64 = 1 << 20;

/// Writes all of `bytes` at offset `at`.
pub(super) fn write_at(mut file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    #[cfg(test)]
    super::tests::burn(file, bytes)?;
    file.write_all(bytes)
}

/// Reads `len` bytes at offset `at`.
pub(super) fn read_at(mut file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes zeros, so that the disk space is actually allocated.
pub(super) fn reserve(file: &File, range: Range<u64>) -> io::Result<()> {
    let zeros = vec![0; CHUNK.min(range.end - range.start) as usize];
    pieces(range, CHUNK).try_for_each(|at| write_at(file, at.start, &zeros[..(at.end - at.start) as usize]))
}

/// Splits `range` into pieces of at most `size`, in order.
pub(super) fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    let starts = (range.start..end).step_by(size.max(1) as usize);
    starts.map(move |start| start..end.min(start.saturating_add(size.max(1))))
}
