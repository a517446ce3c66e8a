//! Malicious files: whatever the bytes, the header is accepted or rejected without a panic and without allocating more
//! than 64 MiB, and a rejection says what is wrong and where.

mod common;

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use rosi_gguf::gguf::{GgmlType, Gguf, GgufBuilder, GgufError, Malformed, Rewrite, Value};

use common::ffi::{Counting, peak_of};
use common::files::gguf_bytes;
use common::plan_only::arch;
use common::run::{ran, refused, stderr};

#[global_allocator]
static COUNTED: Counting = Counting;

/// Upper bound on the memory allocated while a header is parsed, in bytes.
const LIMIT: usize = 64 << 20;

/// Returns a file with metadata values of many types and a tensor of every type.
fn sample() -> Vec<u8> {
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .alignment(64)
        .kv("u8", Value::U8(1))
        .kv("i8", Value::I8(-1))
        .kv("u16", Value::U16(2))
        .kv("i16", Value::I16(-2))
        .kv("i32", Value::I32(-3))
        .kv("f32", Value::F32(0.5))
        .kv("bool", Value::Bool(true))
        .kv("u64", Value::U64(4))
        .kv("i64", Value::I64(-4))
        .kv("f64", Value::F64(0.25))
        .string_array("tokenizer.ggml.tokens", &["a", "bc", ""])
        .f32_array("tokenizer.ggml.scores", &[0.0, 1.0, 2.0])
        .i32_array("tokenizer.ggml.token_type", &[1, 1, 3]);
    for ggml_type in GgmlType::all() {
        let n = 2 * ggml_type.row_bytes(256).unwrap() as usize;
        file = file.tensor(&format!("blk.0.{ggml_type}.weight"), &[256, 2], ggml_type, vec![0; n]);
    }
    gguf_bytes(&file)
}

/// Parses a header and checks the memory limit, and that any error has a printable message.
fn parse(reader: impl Read + Seek, len: u64) -> Result<Gguf, Malformed> {
    let (result, peak) = peak_of(|| Gguf::parse(reader, len));
    assert!(peak <= LIMIT, "{peak} bytes were allocated");
    result.map_err(|error| match error {
        GgufError::Malformed { problem, .. } => {
            let message = problem.to_string();
            assert!(message.len() > 10 && message.chars().all(|c| !c.is_control()), "{message:?}");
            *problem
        }
        other => panic!("{other}"),
    })
}

fn parse_bytes(bytes: &[u8]) -> Result<Gguf, Malformed> {
    parse(Cursor::new(bytes), bytes.len() as u64)
}

/// Checks that all tensors of an accepted header lie within the file, so that later reads stay inside it.
fn check(gguf: &Gguf, len: u64) {
    for tensor in &gguf.tensors {
        assert!(gguf.data_start <= tensor.data.start && tensor.data.end <= len, "{}", tensor.name);
        assert_eq!(tensor.row_bytes().checked_mul(tensor.n_rows()), Some(tensor.n_bytes()));
    }
}

fn try_bytes(bytes: &[u8]) {
    if let Ok(gguf) = parse_bytes(bytes) {
        check(&gguf, bytes.len() as u64);
    }
}

/// A pseudorandom generator (xorshift) with a fixed seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn cut_at_every_byte_of_the_header() {
    let bytes = sample();
    let whole = parse_bytes(&bytes).unwrap();
    check(&whole, bytes.len() as u64);
    for n in 0..whole.data_start as usize {
        let problem = parse_bytes(&bytes[..n]).unwrap_err();
        let named = matches!(
            problem,
            Malformed::Truncated { .. } | Malformed::TooMany { .. } | Malformed::DataStart { .. }
        );
        assert!(named, "{n}: {problem}");
    }
}

#[test]
fn every_byte_of_the_header_overwritten() {
    let bytes = sample();
    let header = parse_bytes(&bytes).unwrap().data_start as usize;
    for at in 0..header {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            try_bytes(&bytes);
        }
    }
}

#[test]
fn every_word_of_the_header_overwritten() {
    let bytes = sample();
    let header = parse_bytes(&bytes).unwrap().data_start as usize;
    let words = [
        0,
        1 << 30,
        1 << 31,
        1 << 32,
        1 << 62,
        1 << 63,
        u64::MAX / 4,
        u64::MAX / 4 + 1,
        u64::MAX - 31,
        u64::MAX,
    ];
    for at in 0..header - 8 {
        for word in words {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(word));
            try_bytes(&bytes);
        }
    }
}

#[test]
fn bytes_flipped_at_random() {
    let bytes = sample();
    let header = parse_bytes(&bytes).unwrap().data_start;
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    for _ in 0..50_000 {
        let mut bytes = bytes.clone();
        for _ in 0..numbers.next() % 6 + 1 {
            bytes[(numbers.next() % header) as usize] = numbers.next() as u8;
        }
        try_bytes(&bytes);
    }
}

/// A file of any length: `start`, then `pattern` repeated, with the number of the repetition in the eight bytes at
/// `count_at`.
struct Endless {
    start: Vec<u8>,
    pattern: Vec<u8>,
    count_at: usize,
    pos: u64,
}

impl Endless {
    fn byte(&self, at: u64) -> u8 {
        let Some(at) = at.checked_sub(self.start.len() as u64) else { return self.start[at as usize] };
        let (n, at) = (at / self.pattern.len() as u64, (at % self.pattern.len() as u64) as usize);
        match at.checked_sub(self.count_at) {
            // Hexadecimal digits, so that the number is valid text.
            Some(digit @ 0..8) => b"0123456789abcdef"[(n >> (4 * digit)) as usize & 15],
            _ => self.pattern[at],
        }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in buffer.iter_mut() {
            *byte = self.byte(self.pos);
            self.pos += 1;
        }
        Ok(buffer.len())
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.pos = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.pos.checked_add_signed(by).unwrap(),
            SeekFrom::End(_) => unreachable!(),
        };
        Ok(self.pos)
    }
}

fn header(n_tensors: u64, n_kv: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(n_tensors.to_le_bytes());
    bytes.extend(n_kv.to_le_bytes());
    bytes
}

/// Encodes a GGUF string: its length, then text of that length.
fn text(len: usize) -> Vec<u8> {
    let mut bytes = (len as u64).to_le_bytes().to_vec();
    bytes.resize(8 + len, b'a');
    bytes
}

fn endless(start: Vec<u8>, pattern: Vec<u8>, count_at: usize) -> Malformed {
    parse(Endless { start, pattern, count_at, pos: 0 }, 1 << 60).unwrap_err()
}

#[test]
fn headers_that_never_end_are_refused_within_the_limit() {
    let too_large = |problem: Malformed| assert!(matches!(problem, Malformed::TooLarge { .. }), "{problem}");
    // Keys: short ones, long ones, ones with long strings, and ones with text that grows when decoded.
    for (key, value) in [(8, vec![0, 0, 0, 0, 1]), (65_000, vec![0, 0, 0, 0, 1])] {
        too_large(endless(header(0, 1 << 50), [text(key), value].concat(), 8));
    }
    let long = [vec![8, 0, 0, 0], text(1 << 20)].concat();
    too_large(endless(header(0, 1 << 40), [text(8), long.clone()].concat(), 8));
    let mut bad = [text(8), long].concat();
    bad[28..].fill(0xff);
    too_large(endless(header(0, 1 << 40), bad, 8));
    // Strings just below the limit and above it.
    for len in [63 << 20, 65 << 20, 1 << 30] {
        let value = [text(8), vec![8, 0, 0, 0], u64::to_le_bytes(len).to_vec()].concat();
        let start = [header(0, 1 << 40), value].concat();
        too_large(endless(start, [text(8), vec![0, 0, 0, 0, 1]].concat(), 8));
    }
    // Tensors.
    let info = [text(8), vec![0; 4], vec![0; 4], vec![0; 8]].concat();
    too_large(endless(header(1 << 50, 0), info, 8));
    // An array with the maximum number of strings is skipped without being kept in memory.
    let array = [text(8), vec![9, 0, 0, 0, 8, 0, 0, 0], u64::to_le_bytes(1 << 20).to_vec()].concat();
    endless([header(0, 2), array].concat(), text(8), 8);
}

/// The extents in a header are checked against the file again when data is read, because the file may have been
/// truncated since (CVE-2026-7482: reads beyond the data during requantization).
#[test]
fn a_file_cut_after_its_header_was_accepted_is_refused_by_the_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let bytes = sample();
    std::fs::write(&path, &bytes).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    for tensor in &gguf.tensors {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(tensor.data.end - 1).unwrap();
        let error = gguf.read_tensor(tensor).unwrap_err();
        assert!(matches!(error, GgufError::Changed { .. }), "{error}");
        let mut replace = |t: &_| Ok(Some(gguf.read_tensor(t)?));
        let error =
            Rewrite::copy(&gguf).write_to(&mut Vec::new(), &mut replace, &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, GgufError::Changed { .. }), "{error}");
        std::fs::write(&path, &bytes).unwrap();
    }
    // A file that is truncated while it is copied.
    let mut cut = |done: u64, _| {
        if done > gguf.data_start {
            std::fs::File::options().write(true).open(&path)?.set_len(gguf.data_start + 1)?;
        }
        Ok(())
    };
    let mut replace = |t: &_| Ok(Some(gguf.read_tensor(t)?));
    Rewrite::copy(&gguf).write_to(&mut Vec::new(), &mut replace, &mut cut).unwrap_err();
}

fn save(folder: &Path, name: &str, file: GgufBuilder) -> String {
    let path = folder.join(name);
    std::fs::write(&path, gguf_bytes(&file)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_no_language_model_is_refused_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let some = |file: GgufBuilder| file.f32_tensor("t", &[4], &[0.0; 4]);
    let cases = [
        (some(arch("clip")), "multimodal projector (mmproj)"),
        (some(arch("llama").string("general.type", "mmproj")), "multimodal projector (mmproj)"),
        (some(arch("llama").string("general.type", "adapter")), "LoRA adapter"),
        (some(arch("controlvector")), "control vector"),
        (some(GgufBuilder::new().string("general.type", "imatrix")), "importance matrix (imatrix)"),
        (arch("llama"), "vocabulary without tensors"),
    ];
    for (i, (file, expected)) in cases.into_iter().enumerate() {
        let path = save(dir.path(), &format!("{i}.gguf"), file);
        for args in [
            &["inspect", &path][..],
            &["inject", &path],
            &["verify", &path, &path],
            &["eval", &path],
            &["ask", &path, "--prompt", "x"],
        ] {
            let told = refused(args);
            assert!(told.contains(expected) && told.contains("hint: "), "{args:?}: {told}");
        }
    }
    // A legacy imatrix has no magic.
    let path = dir.path().join("imatrix.dat");
    std::fs::write(&path, [1i32.to_le_bytes(), (-5i32).to_le_bytes()].concat().repeat(9)).unwrap();
    let output = ran(&["inspect", path.to_str().unwrap()]);
    assert!(stderr(&output).contains("not a GGUF file"));
}

#[test]
fn a_legacy_imatrix_with_a_negative_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.dat");
    for len in [-1i32, i32::MIN, i32::MAX] {
        let bytes = [1i32.to_le_bytes(), len.to_le_bytes(), [0; 4], [0; 4], [0; 4], [0; 4]].concat();
        std::fs::write(&path, bytes).unwrap();
        let (result, peak) = peak_of(|| rosi_gguf::imatrix::Imatrix::open(&path).map(drop));
        let told = result.unwrap_err().to_string();
        assert!(told.contains(&len.to_string()) && peak < 1 << 20, "{told}");
    }
}
