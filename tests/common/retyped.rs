//! Copies of a model with some of its tensors in another type.

use std::path::Path;

use rosi_gguf::gguf::{GgmlType, Gguf, Rewrite, TensorInfo};
use rosi_gguf::quant;

/// Writes `gguf` to `out`, with the tensors for which `changes` returns true in `ggml_type`.
pub fn retyped(gguf: &Gguf, out: &Path, ggml_type: GgmlType, changes: &dyn Fn(&TensorInfo) -> bool) {
    let types = gguf.tensors.iter().filter(|t| changes(t)).map(|t| (t.name.clone(), ggml_type)).collect();
    let rewrite = Rewrite { types, ..Rewrite::copy(gguf) };
    let mut replace = |tensor: &TensorInfo| {
        if !changes(tensor) {
            return Ok(None);
        }
        let n_in = tensor.ne[0] as usize;
        let mut values = vec![0.0; n_in * tensor.n_rows() as usize];
        quant::dequantize(tensor.ggml_type, n_in, &gguf.read_tensor(tensor)?, &mut values)?;
        let row = ggml_type.row_bytes(tensor.ne[0]).unwrap();
        let mut bytes = vec![0; (row * tensor.n_rows()) as usize];
        quant::quantize(ggml_type, n_in, &values, &mut bytes)?;
        Ok(Some(bytes))
    };
    rewrite.write_to(&mut std::fs::File::create(out).unwrap(), &mut replace, &mut |_, _| Ok(())).unwrap();
}

/// Writes `model` to `out` with all matrices in `ggml_type`.
pub fn converted(model: &Path, out: &Path, ggml_type: GgmlType) {
    let changes = |t: &TensorInfo| t.n_dims > 1 && t.ggml_type != ggml_type;
    retyped(&Gguf::open(model).unwrap(), out, ggml_type, &changes);
}
