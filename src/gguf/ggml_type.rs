//! Tensor types of GGUF files and their block sizes.

use std::fmt;

/// Storage type of a tensor's elements. The discriminant is the ID in the file.
///
/// IDs 4, 5, 31–33, and 36–38 were removed from the format and are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(non_camel_case_types, missing_docs)] // llama.cpp's spelling; the table below documents each
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use GgmlType as T;

/// Type, name, elements per block, bytes per block (`static_assert`s in `ggml-common.h`).
const TABLE: &[(GgmlType, &str, u64, u64)] = &[
    (T::F32, "F32", 1, 4),
    (T::F16, "F16", 1, 2),
    (T::Q4_0, "Q4_0", 32, 18),
    (T::Q4_1, "Q4_1", 32, 20),
    (T::Q5_0, "Q5_0", 32, 22),
    (T::Q5_1, "Q5_1", 32, 24),
    (T::Q8_0, "Q8_0", 32, 34),
    (T::Q8_1, "Q8_1", 32, 36),
    (T::Q2_K, "Q2_K", 256, 84),
    (T::Q3_K, "Q3_K", 256, 110),
    (T::Q4_K, "Q4_K", 256, 144),
    (T::Q5_K, "Q5_K", 256, 176),
    (T::Q6_K, "Q6_K", 256, 210),
    (T::Q8_K, "Q8_K", 256, 292),
    (T::IQ2_XXS, "IQ2_XXS", 256, 66),
    (T::IQ2_XS, "IQ2_XS", 256, 74),
    (T::IQ3_XXS, "IQ3_XXS", 256, 98),
    (T::IQ1_S, "IQ1_S", 256, 50),
    (T::IQ4_NL, "IQ4_NL", 32, 18),
    (T::IQ3_S, "IQ3_S", 256, 110),
    (T::IQ2_S, "IQ2_S", 256, 82),
    (T::IQ4_XS, "IQ4_XS", 256, 136),
    (T::I8, "I8", 1, 1),
    (T::I16, "I16", 1, 2),
    (T::I32, "I32", 1, 4),
    (T::I64, "I64", 1, 8),
    (T::F64, "F64", 1, 8),
    (T::IQ1_M, "IQ1_M", 256, 56),
    (T::BF16, "BF16", 1, 2),
    (T::TQ1_0, "TQ1_0", 256, 54),
    (T::TQ2_0, "TQ2_0", 256, 66),
    (T::MXFP4, "MXFP4", 32, 17),
    (T::NVFP4, "NVFP4", 64, 36),
    (T::Q1_0, "Q1_0", 128, 18),
    (T::Q2_0, "Q2_0", 64, 18),
];

impl GgmlType {
    /// Returns all types in ascending order of ID.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.0)
    }

    /// Returns the type with this ID, or `None` if the ID is unknown or was removed from the format.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|t| t.id() == id)
    }

    /// Returns the ID written in the file.
    pub fn id(self) -> u32 {
        self as u32
    }

    fn row(self) -> &'static (GgmlType, &'static str, u64, u64) {
        // TABLE lists every variant (tested), so the fallback is never taken.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// Returns the name as spelled by llama.cpp's tools, such as `Q4_K`, `IQ2_XXS`, or `BF16`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns the number of elements per block; 1 for types without blocks.
    pub fn block_len(self) -> u64 {
        self.row().2
    }

    /// Returns the number of bytes per block.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Returns the bytes of a row of `ne0` elements, `ne0 / block_len * block_bytes`, or `None` if `ne0`
    /// is not a multiple of the block length or the product overflows.
    pub fn row_bytes(self, ne0: u64) -> Option<u64> {
        if !ne0.is_multiple_of(self.block_len()) {
            return None;
        }
        (ne0 / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Returns whether ggml can convert f32 rows to this type (`ggml_quantize_chunk` aborts on other types).
    pub fn can_quantize(self) -> bool {
        !matches!(self, T::Q8_1 | T::Q8_K | T::I8 | T::I16 | T::I32 | T::I64 | T::F64)
    }

    /// Returns whether ggml aborts when quantizing to this type without an importance matrix
    /// (`ggml_quantize_requires_imatrix`).
    pub fn needs_imatrix(self) -> bool {
        matches!(self, T::IQ2_XXS | T::IQ2_XS | T::IQ1_S)
    }

    /// Returns whether the elements are plain floating-point numbers: F32, F16, BF16, or F64.
    pub fn is_float(self) -> bool {
        matches!(self, T::F32 | T::F16 | T::BF16 | T::F64)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl serde::Serialize for GgmlType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
