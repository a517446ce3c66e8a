//! Reading and re-choosing the codewords of ggml's vector-codebook types in place: IQ1_S, IQ1_M,
//! IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.
//!
//! A block of 256 values is cut into groups of 4 or 8 that share one codeword c of a fixed
//! codebook. A value of group g is `factor_g · (sign_j · c_j + delta_g)`; here only codewords and
//! signs change, factor and delta stay as they are. The IQ1 types have no signs, the others no
//! delta. The codebooks are not in this source: they are learned by decoding blocks that hold
//! every index.

mod layout;
mod near;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use self::layout::{Layout, Signs};
use self::near::Near;
use crate::gguf::GgmlType;

/// Values per block, of every type here.
const BLOCK_LEN: usize = 256;

/// What one group of a block holds, without its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Codeword {
    index: u16,
    signs: u8,
}

impl Codeword {
    /// Index in the codebook.
    pub fn index(self) -> u16 {
        self.index
    }

    /// Bit j is set when value j is negative; 0 for the IQ1 types, whose codewords are signed.
    pub fn signs(self) -> u8 {
        self.signs
    }
}

/// How a group's codeword becomes values: factor × (codeword + delta).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Length of one unit of the codebook; negative where the block's scale is.
    pub factor: f32,
    /// ±0.125 in the IQ1 types, else 0.
    pub delta: f32,
}

/// The codebook of one type, with each codeword's nearest others.
#[derive(Debug)]
pub struct Codebook {
    ggml_type: GgmlType,
    layout: Layout,
    /// Codewords in units, `[len][8]`; zero beyond `dim`.
    points: Vec<[f32; 8]>,
    /// `[len][list_len]`
    near: Vec<Near>,
}

impl Codebook {
    /// The codebook of a type, `None` for types that have none. Built at first use.
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

    /// The type.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Values per group, 4 or 8: group g covers values `g·dim .. (g+1)·dim` of its block.
    pub fn dim(&self) -> usize {
        self.layout.dim()
    }

    /// Values per block.
    pub fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    /// Bytes per block.
    pub fn block_bytes(&self) -> usize {
        self.ggml_type.block_bytes() as usize
    }

    /// Groups per block.
    pub fn groups_per_block(&self) -> usize {
        BLOCK_LEN / self.dim()
    }

    /// The codeword of group `g`.
    ///
    /// # Panics
    /// Like all that takes a block: when `block` is shorter than a block or `g` beyond its groups.
    #[inline]
    pub fn read(&self, block: &[u8], g: usize) -> Codeword {
        let (index, signs) = self.layout.read(block, g);
        Codeword { index, signs }
    }

    /// What multiplies, and shifts, the codeword of group `g`.
    #[inline]
    pub fn scale(&self, block: &[u8], g: usize) -> Scale {
        let (factor, delta) = self.layout.scale(block, g);
        Scale { factor, delta }
    }

    /// The codeword with its signs in units of the codebook, f32 `[dim]`, zero beyond `dim`.
    #[inline]
    pub fn units(&self, codeword: Codeword) -> [f32; 8] {
        let point = &self.points[usize::from(codeword.index)];
        let sign = |j: usize| u32::from(codeword.signs >> j & 1) << 31;
        std::array::from_fn(|j| f32::from_bits(point[j].to_bits() ^ sign(j)))
    }

    /// What ggml decodes, to the bit, where `codeword` stands under `scale`: factor · (units +
    /// delta), f32 `[dim]`. What is beyond `dim` means nothing.
    #[inline]
    pub fn values_at(&self, scale: Scale, codeword: Codeword) -> [f32; 8] {
        self.units(codeword).map(|unit| scale.factor * (unit + scale.delta))
    }

    /// [`Codebook::values_at`] the scale of group `g`.
    #[inline]
    pub fn values(&self, block: &[u8], g: usize, codeword: Codeword) -> [f32; 8] {
        self.values_at(self.scale(block, g), codeword)
    }

    /// What may replace a codeword, nearest first (by distance in units): the 24 nearest other
    /// codewords with the same signs, and in the types that store signs the 16 nearest (codeword,
    /// signs) with one or two signs turned over. In IQ2_XXS, IQ2_XS and IQ3_XXS it is always two of
    /// the same group, so that parity, and with it every other group, stays. Equal distances come
    /// in an order that is fixed and favours no coordinate.
    #[inline]
    pub fn neighbours(&self, codeword: Codeword) -> impl ExactSizeIterator<Item = Codeword> + '_ {
        let len = near::list_len(self.layout.signs());
        let list = &self.near[usize::from(codeword.index) * len..][..len];
        list.iter().map(move |near| Codeword { index: near.index, signs: codeword.signs ^ near.flips })
    }

    /// Those of [`Codebook::neighbours`] nearer than `√limit` units.
    #[inline]
    pub fn neighbours_within(&self, codeword: Codeword, limit: f32) -> impl Iterator<Item = Codeword> + '_ {
        let len = near::list_len(self.layout.signs());
        let list = self.near[usize::from(codeword.index) * len..][..len].iter();
        list.take_while(move |near| near.distance < limit)
            .map(move |near| Codeword { index: near.index, signs: codeword.signs ^ near.flips })
    }

    /// Puts a codeword in the place of group `g`; no other bit changes. It comes from
    /// [`Codebook::read`] of this group or of [`Codebook::neighbours`] of that, else the parity of
    /// signs may not fit the types that keep one.
    #[inline]
    pub fn write(&self, block: &mut [u8], g: usize, codeword: Codeword) {
        self.layout.write(block, g, codeword.index, codeword.signs);
    }

    /// Whether the type stores signs beside its codewords.
    pub fn has_signs(&self) -> bool {
        self.layout.signs() != Signs::None
    }
}
