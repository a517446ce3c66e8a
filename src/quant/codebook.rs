//! Reading and replacing, in place, the codewords of ggml's vector-codebook types: IQ1_S, IQ1_M, IQ2_XXS,
//! IQ2_XS, IQ2_S, IQ3_XXS, and IQ3_S.
//!
//! A block of 256 values is divided into groups of 4 or 8, each encoded as one codeword c of a fixed
//! codebook. Value j of group g is `factor_g · (sign_j · c_j + delta_g)`. Only codewords and signs change
//! here; factor and delta stay the same. The IQ1 types have no signs; the other types have no delta. The
//! codebooks are not part of this source: they are obtained by decoding blocks that contain every index.

mod layout;
mod near;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use self::layout::{Layout, Signs};
use self::near::Near;
use crate::gguf::GgmlType;

/// Values per block; the same for all codebook types.
const BLOCK_LEN: usize = 256;

/// Encoded content of one group of a block, without its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Codeword {
    index: u16,
    signs: u8,
}

impl Codeword {
    /// Returns the index in the codebook.
    pub fn index(self) -> u16 {
        self.index
    }

    /// Returns the signs: bit j is set if value j is negative. 0 for the IQ1 types, whose codewords are signed.
    pub fn signs(self) -> u8 {
        self.signs
    }
}

/// Scale of a group: its values are factor × (codeword + delta).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Size of one codebook unit; negative if the block's scale is negative.
    pub factor: f32,
    /// ±0.125 for the IQ1 types, 0 for the others.
    pub delta: f32,
}

/// The codebook of one type, with the nearest neighbors of each codeword.
#[derive(Debug)]
pub struct Codebook {
    ggml_type: GgmlType,
    layout: Layout,
    /// Codewords in codebook units, `[len][8]`; zero beyond `dim`.
    points: Vec<[f32; 8]>,
    /// Neighbors of each codeword, nearest first, `[len][list_len]`.
    near: Vec<Near>,
}

impl Codebook {
    /// Returns the codebook of a type, or `None` if the type has none. Built on first use.
    pub fn of(ggml_type: GgmlType) -> Option<&'static Self> {
        static BOOKS: [OnceLock<Option<Codebook>>; Layout::COUNT] =
            [const { OnceLock::new() }; Layout::COUNT];
        let layout = Layout::of(ggml_type)?;
        BOOKS[layout as usize].get_or_init(|| Self::learn(ggml_type, layout)).as_ref()
    }

    fn learn(ggml_type: GgmlType, layout: Layout) -> Option<Self> {
        let dim = layout.dim();
        let mut block = vec![0; ggml_type.block_bytes() as usize];
        layout.set_unit_scale(&mut block);
        let mut points = Vec::with_capacity(layout.len());
        let mut values = [0.0; BLOCK_LEN];
        while points.len() < layout.len() {
            for g in 0..BLOCK_LEN / dim {
                layout.write(&mut block, g, (points.len() + g) as u16, 0);
            }
            super::dequantize(ggml_type, BLOCK_LEN, &block, &mut values).ok()?;
            points.extend(values.chunks_exact(dim).enumerate().map(|(g, group)| {
                let (factor, delta) = layout.scale(&block, g);
                std::array::from_fn(|j| group.get(j).map_or(0.0, |value| value / factor - delta))
            }));
        }
        let whole: Vec<near::Point> = points.iter().map(|p: &[f32; 8]| p.map(|v| v as i32)).collect();
        let near = near::lists(&whole, dim, layout.signs());
        Some(Self { ggml_type, layout, points, near })
    }

    /// Returns the type.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Returns the values per group, 4 or 8: group g covers values `g·dim .. (g+1)·dim` of its block.
    pub fn dim(&self) -> usize {
        self.layout.dim()
    }

    /// Returns the values per block.
    pub fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    /// Returns the bytes per block.
    pub fn block_bytes(&self) -> usize {
        self.ggml_type.block_bytes() as usize
    }

    /// Returns the groups per block.
    pub fn groups_per_block(&self) -> usize {
        BLOCK_LEN / self.dim()
    }

    /// Returns the codeword of group `g`.
    ///
    /// # Panics
    /// Panics if `block` is shorter than a block or `g` is not a group of it, as do all methods that take a
    /// block.
    #[inline]
    pub fn read(&self, block: &[u8], g: usize) -> Codeword {
        let (index, signs) = self.layout.read(block, g);
        Codeword { index, signs }
    }

    /// Returns the factor and delta of group `g`.
    #[inline]
    pub fn scale(&self, block: &[u8], g: usize) -> Scale {
        let (factor, delta) = self.layout.scale(block, g);
        Scale { factor, delta }
    }

    /// Returns the codeword with its signs, in codebook units, `[dim]`; zero beyond `dim`.
    #[inline]
    pub fn units(&self, codeword: Codeword) -> [f32; 8] {
        let point = &self.points[usize::from(codeword.index)];
        let sign = |j: usize| u32::from(codeword.signs >> j & 1) << 31;
        std::array::from_fn(|j| f32::from_bits(point[j].to_bits() ^ sign(j)))
    }

    /// Returns the values, `[dim]`, that ggml decodes from `codeword` with `scale`, bit for bit:
    /// factor · (units + delta). Elements beyond `dim` are meaningless.
    #[inline]
    pub fn values_at(&self, scale: Scale, codeword: Codeword) -> [f32; 8] {
        self.units(codeword).map(|unit| scale.factor * (unit + scale.delta))
    }

    /// Returns [`Codebook::values_at`] with the scale of group `g`.
    #[inline]
    pub fn values(&self, block: &[u8], g: usize, codeword: Codeword) -> [f32; 8] {
        self.values_at(self.scale(block, g), codeword)
    }

    /// Returns possible replacements for a codeword, nearest first (distance in codebook units): the 24
    /// nearest other codewords with the same signs and, for types that store signs, the 16 nearest pairs of
    /// codeword and signs with one or two signs flipped. For IQ2_XXS, IQ2_XS, and IQ3_XXS, always two signs
    /// of the group are flipped, which preserves the parity and thus all other groups. Ties are broken in a
    /// fixed order that favors no coordinate.
    #[inline]
    pub fn neighbours(&self, codeword: Codeword) -> impl ExactSizeIterator<Item = Codeword> + '_ {
        let len = near::list_len(self.layout.signs());
        let list = &self.near[usize::from(codeword.index) * len..][..len];
        list.iter().map(move |near| Codeword { index: near.index, signs: codeword.signs ^ near.flips })
    }

    /// Returns the [`Codebook::neighbours`] whose squared distance is less than `limit`.
    #[inline]
    pub fn neighbours_within(&self, codeword: Codeword, limit: f32) -> impl Iterator<Item = Codeword> + '_ {
        let len = near::list_len(self.layout.signs());
        let list = self.near[usize::from(codeword.index) * len..][..len].iter();
        list.take_while(move |near| near.distance < limit)
            .map(move |near| Codeword { index: near.index, signs: codeword.signs ^ near.flips })
    }

    /// Replaces the codeword of group `g`; no other bit changes. `codeword` must come from
    /// [`Codebook::read`] of this group or from its [`Codebook::neighbours`]; otherwise, the parity of the
    /// signs may be wrong for types that do not store all signs.
    #[inline]
    pub fn write(&self, block: &mut [u8], g: usize, codeword: Codeword) {
        self.layout.write(block, g, codeword.index, codeword.signs);
    }

    /// Returns whether the type stores signs separately from its codewords.
    pub fn has_signs(&self) -> bool {
        self.layout.signs() != Signs::None
    }
}
