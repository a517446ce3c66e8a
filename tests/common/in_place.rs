//! A model file small enough to be changed in place hundreds of times.

use std::path::{Path, PathBuf};

use rosi_gguf::gguf::in_place::{Change, InPlace, UndoError};
use rosi_gguf::gguf::{AtomicFile, GgmlType, Gguf, GgufBuilder, GgufError, Rewrite, Value};

use super::files::{gguf_bytes, sha256};

/// Bytes moved at a time, which makes some tens of batches for the file of [`model`].
pub const BATCH: u64 = 128 << 10;
/// Names of the tensors that get new data.
pub const EDITED: [&str; 2] = ["blk.0.attn_output.weight", "blk.0.ffn_down.weight"];
/// Number of values in the added F32 array; the tensor data moves by four times as many bytes.
const ADDED: usize = 60_000;

/// Writes a llama model of one block and `megabytes` MB of other weights. Its header suffices for a plan, but it cannot
/// be run, since it has no vocabulary.
pub fn model(folder: &Path, megabytes: usize) -> PathBuf {
    let mut file = GgufBuilder::new()
        .string("general.architecture", "llama")
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .kv("llama.block_count", Value::U32(1))
        .kv("llama.embedding_length", Value::U32(256));
    let noise = |n: usize, seed: u64| -> Vec<u8> {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        };
        (0..n).map(|_| next()).collect()
    };
    let rows = 1024 * megabytes as u64;
    file = file.tensor("token_embd.weight", &[256, rows], GgmlType::F32, noise(1024 * rows as usize, 1));
    for (seed, name) in (2..).zip(EDITED) {
        file = file.tensor(name, &[1024, 256], GgmlType::Q8_0, noise(1088 * 256, seed));
    }
    file = file.f32_tensor("output_norm.weight", &[256], &[1.0; 256]);
    let path = folder.join("model.gguf");
    std::fs::write(&path, gguf_bytes(&file)).unwrap();
    path
}

/// Returns the rewrite that the change applies.
pub fn rewrite(source: &Gguf) -> Rewrite<'_> {
    Rewrite {
        added: vec![("rosi.version".into(), Value::String("test".into()))],
        added_f32: vec![("rosi.direction".into(), vec![0.5; ADDED])],
        ..Rewrite::copy(source)
    }
}

fn inverted(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().map(|byte| !byte).collect()
}

/// Changes the file as `inject --in-place` does, and restores it if that fails. `pause` runs between hashing and
/// changing. With `leave_half`, the change is applied but not accepted.
pub fn change(path: &Path, pause: impl FnOnce(), leave_half: bool) -> Result<(), UndoError> {
    let source = Gguf::open(path)?;
    let sha256 = sha256(path);
    pause();
    let rewrite = rewrite(&source);
    let change = Change { rewrite: &rewrite, edited: &EDITED, sha256: &sha256, batch: BATCH };
    let mut file = InPlace::begin(&change, &mut |_, _| Ok(()))?;
    let applied = file
        .apply(&change, &mut |_, old| Ok(inverted(old)), &mut |_, _| Ok(()))
        .and_then(|()| file.prove(&mut |_, _| Ok(())));
    match applied {
        Ok(()) if leave_half => Ok(()),
        Ok(()) => file.accept(),
        Err(error) => file.restore().and(Err(error)),
    }
}

/// Writes a copy with the same change, as `inject` does.
pub fn copy(path: &Path, out: &Path, pause: impl FnOnce()) -> Result<(), GgufError> {
    let source = Gguf::open(path)?;
    let mut file = AtomicFile::create(out, false)?;
    pause();
    let mut replace = |tensor: &rosi_gguf::gguf::TensorInfo| match EDITED.contains(&tensor.name.as_str()) {
        true => Ok(Some(inverted(source.read_tensor(tensor)?))),
        false => Ok(None),
    };
    rewrite(&source).write_to(&mut file, &mut replace, &mut |_, _| Ok(()))?;
    file.commit()
}
