//! Writes edited model files without a search.

use std::path::Path;

use rosi_gguf::gguf::{Gguf, Rewrite, TensorInfo};
use rosi_gguf::method::edit::Edit;
use rosi_gguf::method::requant::{self, Requant};
use rosi_gguf::quant::preserve::InputModel;

/// Writes `gguf` with `edits` to `out`, rounded to nearest.
pub fn write_edited(gguf: &Gguf, edits: &[Edit], out: &Path) {
    write_as(gguf, edits, out, Requant::Nearest);
}

/// Writes `gguf` with `edits` to `out`, quantized again as `requant` says.
pub fn write_as(gguf: &Gguf, edits: &[Edit], out: &Path, requant: Requant) {
    let mut replace = |tensor: &TensorInfo| {
        let Some(edit) = edits.iter().find(|e| e.tensor == tensor.name) else { return Ok(None) };
        let bytes = gguf.read_tensor(tensor)?;
        Ok(Some(requant::apply(edit, tensor, bytes, requant, &InputModel::default())?))
    };
    let mut file = std::fs::File::create(out).unwrap();
    Rewrite::copy(gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(())).unwrap();
}
