//! Splits a model as `llama-gguf-split` does.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rosi_gguf::gguf::{Gguf, TensorInfo};

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Encodes a key-value record of an integer type.
pub fn record(key: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    string(&mut out, key);
    out.extend(value_type.to_le_bytes());
    out.extend(value);
    out
}

/// Returns the `split.*` records of one file.
pub fn place(no: u16, count: u16, n_tensors: i32) -> Vec<Vec<u8>> {
    vec![
        record("split.no", 2, &no.to_le_bytes()),
        record("split.count", 2, &count.to_le_bytes()),
        record("split.tensors.count", 5, &n_tensors.to_le_bytes()),
    ]
}

/// Writes one file with the `n_kv` records encoded in `kv` and the `tensors` of `model`.
fn write_file(path: &Path, n_kv: usize, kv: Vec<u8>, model: &Gguf, tensors: &[TensorInfo], alignment: u64) {
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((n_kv as u64).to_le_bytes());
    header.extend(kv);
    let mut offset = 0u64;
    for tensor in tensors {
        string(&mut header, &tensor.name);
        header.extend(tensor.n_dims.to_le_bytes());
        tensor.ne[..tensor.n_dims as usize].iter().for_each(|n| header.extend(n.to_le_bytes()));
        header.extend(tensor.ggml_type.id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.n_bytes().next_multiple_of(alignment);
    }
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut put = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        file.write_all(&bytes).unwrap();
    };
    if tensors.is_empty() {
        file.write_all(&header).unwrap();
    } else {
        put(header);
        tensors.iter().for_each(|tensor| put(model.read_tensor(tensor).unwrap()));
    }
    file.flush().unwrap();
}

/// Splits `model` into `FOLDER/NAME-0000K-of-0000N.gguf` with `counts[k]` tensors in file k. All keys go into the first
/// file, so only this one has the model's alignment.
pub fn split(model: &Gguf, folder: &Path, name: &str, counts: &[usize]) -> Vec<PathBuf> {
    assert_eq!(counts.iter().sum::<usize>(), model.tensors.len());
    let mut at = 0;
    let mut paths = Vec::new();
    for (no, &n) in counts.iter().enumerate() {
        let own = place(no as u16, counts.len() as u16, model.tensors.len() as i32);
        let first = no == 0;
        let mut kv = if first { model.read_bytes(&model.kv_bytes).unwrap() } else { Vec::new() };
        kv.extend(own.concat());
        let n_kv = own.len() + if first { model.metadata.len() } else { 0 };
        let path = folder.join(format!("{name}-{:05}-of-{:05}.gguf", no + 1, counts.len()));
        let alignment = if first { model.alignment } else { 32 };
        write_file(&path, n_kv, kv, model, &model.tensors[at..at + n], alignment);
        at += n;
        paths.push(path);
    }
    paths
}
