//! What the header says about one tensor.

use std::ops::Range;

use super::GgmlType;

/// One tensor of the file; the reader has checked that shape, type and range agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.3.ffn_down.weight`.
    pub name: String,
    /// Number of dimensions written in the file, 0 to 4.
    pub n_dims: u32,
    /// Elements along each axis, `ne[0]` fastest; axes the file leaves out are 1.
    pub ne: [u64; 4],
    /// How the elements are stored.
    pub ggml_type: GgmlType,
    /// Where the data lies, from the start of the file.
    pub data: Range<u64>,
    /// Which file of a split model holds it, from 0.
    pub shard: u16,
}

impl TensorInfo {
    /// `ne[0] · ne[1] · ne[2] · ne[3]`.
    pub fn n_elements(&self) -> u64 {
        self.ne[0].saturating_mul(self.n_rows())
    }

    /// Rows of `ne[0]` elements: `ne[1] · ne[2] · ne[3]`.
    pub fn n_rows(&self) -> u64 {
        // Saturating, because [0, 2^40, 2^40, 1] is a legal, empty shape.
        self.ne[1].saturating_mul(self.ne[2]).saturating_mul(self.ne[3])
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        // The reader refuses a row that is not whole blocks; 0 keeps a hand-made value harmless.
        self.ggml_type.row_bytes(self.ne[0]).unwrap_or(0)
    }

    /// Bytes of the whole tensor.
    pub fn n_bytes(&self) -> u64 {
        self.data.end - self.data.start
    }
}
