//! Description of a tensor in the header.

use std::ops::Range;

use super::GgmlType;

/// A tensor of the file. The reader has checked that shape, type, and byte range agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.3.ffn_down.weight`.
    pub name: String,
    /// Number of dimensions written in the file, 0 to 4.
    pub n_dims: u32,
    /// Elements along each axis, `ne[0]` fastest; axes that the file omits are 1.
    pub ne: [u64; 4],
    /// Storage type of the elements.
    pub ggml_type: GgmlType,
    /// Byte range of the data in its file.
    pub data: Range<u64>,
    /// Index of the file of a split model that stores the tensor, from 0.
    pub shard: u16,
}

impl TensorInfo {
    /// Returns the number of elements, `ne[0] · ne[1] · ne[2] · ne[3]` (saturating).
    pub fn n_elements(&self) -> u64 {
        self.ne[0].saturating_mul(self.n_rows())
    }

    /// Returns the number of rows of `ne[0]` elements, `ne[1] · ne[2] · ne[3]`.
    pub fn n_rows(&self) -> u64 {
        // Saturating, because [0, 2^40, 2^40, 1] is a valid empty shape.
        self.ne[1].saturating_mul(self.ne[2]).saturating_mul(self.ne[3])
    }

    /// Returns the size of one row in bytes.
    pub fn row_bytes(&self) -> u64 {
        // The reader rejects rows of partial blocks; 0 is a harmless value for hand-made instances.
        self.ggml_type.row_bytes(self.ne[0]).unwrap_or(0)
    }

    /// Returns the size of the tensor in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.data.end - self.data.start
    }
}
