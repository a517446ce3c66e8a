//! A reader that tracks the remaining file length and the memory budget of the header.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::Malformed;

/// llama.cpp's `GGUF_MAX_STRING_LENGTH`.
const MAX_STRING: u64 = 1 << 30;
/// Real headers take a few MiB at most; this keeps a hostile one from exhausting memory.
pub(super) const MAX_MEMORY: u64 = 64 << 20;
/// Memory that is held but not charged: the buffer, and names of up to 64 KiB in `part` and in an error.
const UNCHARGED: u64 = 512 << 10;

/// Bounded little-endian reader. `part` describes what is being read, for error messages.
pub(super) struct Cursor<R> {
    inner: BufReader<R>,
    pos: u64,
    len: u64,
    memory: u64,
    pub(super) part: String,
}

impl<R: Read + Seek> Cursor<R> {
    pub(super) fn new(mut reader: R, len: u64) -> Result<Self, Malformed> {
        let part = "the header".to_string();
        if let Err(source) = reader.seek(SeekFrom::Start(0)) {
            return Err(Malformed::Read { part, source });
        }
        Ok(Cursor {
            inner: BufReader::with_capacity(1 << 16, reader),
            pos: 0,
            // No file is longer than i64::MAX, so relative seeks below cannot wrap.
            len: len.min(i64::MAX as u64),
            memory: 0,
            part,
        })
    }

    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Memory charged so far.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    pub(super) fn left(&self) -> u64 {
        self.len - self.pos
    }

    /// Checks that the file has at least `need` more bytes.
    pub(super) fn need(&self, need: u64) -> Result<(), Malformed> {
        if need <= self.left() {
            return Ok(());
        }
        Err(Malformed::Truncated { part: self.part.clone(), at: self.pos, need, left: self.left() })
    }

    /// Charges memory that is about to be allocated to the budget.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), Malformed> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory <= MAX_MEMORY - UNCHARGED {
            return Ok(());
        }
        Err(Malformed::TooLarge { part: self.part.clone(), max: MAX_MEMORY })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Malformed> {
        self.need(buffer.len() as u64)?;
        if let Err(source) = self.inner.read_exact(buffer) {
            let part = self.part.clone();
            return Err(Malformed::Read { part, source });
        }
        self.pos += buffer.len() as u64;
        Ok(())
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    pub(super) fn skip(&mut self, n: u64) -> Result<(), Malformed> {
        self.need(n)?;
        // `need` bounds n by `len`, which fits i64.
        if let Err(source) = self.inner.seek_relative(n as i64) {
            let part = self.part.clone();
            return Err(Malformed::Read { part, source });
        }
        self.pos += n;
        Ok(())
    }

    /// Reads the length of a string and checks it against the limit and the file.
    pub(super) fn string_len(&mut self) -> Result<u64, Malformed> {
        let found = self.u64()?;
        if found > MAX_STRING {
            return Err(Malformed::StringLength { part: self.part.clone(), found, max: MAX_STRING });
        }
        self.need(found)?;
        Ok(found)
    }

    /// Reads `len` bytes of a string; invalid UTF-8 is replaced with U+FFFD.
    pub(super) fn text(&mut self, len: u64) -> Result<String, Malformed> {
        self.charge(len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).or_else(|error| {
            // Each invalid byte becomes the three bytes of U+FFFD.
            self.charge(3 * len)?;
            Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
        })
    }

    pub(super) fn string(&mut self) -> Result<String, Malformed> {
        let len = self.string_len()?;
        self.text(len)
    }
}
