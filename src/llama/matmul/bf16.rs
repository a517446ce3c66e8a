//! Products in BF16 with sums in F32, for x86 CPUs that multiply BF16 (AVX512-BF16: Zen 4, Cooper Lake, Sapphire Rapids
//! and later). They do so twice as fast as in F32.
//!
//! Weights and activations are rounded to 8 significant bits, a relative error of at most 2⁻⁸ each. llama.cpp's own
//! products round activations to 8 bits of the largest of 32 values or more, which makes nearly twice the error.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_si512,
};
use std::mem::transmute;

/// Values in a vector of F32, and pairs in a vector of BF16.
const LANES: usize = 16;
/// Rows of the weights that are multiplied at a time.
const ROWS: usize = 2 * LANES;
/// Tokens that are multiplied at a time: with two vectors of rows, their sums fill 24 of the 32 registers.
const TOKENS: usize = 12;

/// Pairs of successive values of a row or a token, in BF16: the first value in the lower half.
type Pair = u32;

/// Operands of a product in the kernel's layout, for a CPU that multiplies BF16.
pub(super) struct Operands {
    /// `[n_tokens, rounded up to TOKENS][n_in / 2]`; zero for the added tokens.
    x: Vec<Pair>,
    /// `[n_rows / ROWS, rounded up][n_in / 2][ROWS]`; zero for the added rows.
    w: Vec<Pair>,
}

impl Operands {
    /// Creates empty operands; `None` if this CPU does not multiply BF16.
    pub(super) fn new() -> Option<Self> {
        let is_supported = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        is_supported.then(|| Self { x: Vec::new(), w: Vec::new() })
    }

    /// Rounds the activations `x` `[n_tokens][n_in]`; `n_in` must be a multiple of 32.
    pub(super) fn set_tokens(&mut self, x: &[f32], n_in: usize) {
        assert_eq!((x.len() % n_in, n_in % (2 * LANES)), (0, 0));
        let n_tokens = (x.len() / n_in).next_multiple_of(TOKENS);
        self.x.clear();
        self.x.resize(n_tokens * n_in / 2, 0);
        // SAFETY: operands exist only if the CPU multiplies BF16.
        unsafe { round(x, &mut self.x) }
    }

    /// Rounds the weights `w` `[n_rows][n_in]` and interleaves groups of [`ROWS`] rows; `n_in` must be a multiple of 32.
    pub(super) fn set_rows(&mut self, w: &[f32], n_in: usize) {
        assert_eq!((w.len() % n_in, n_in % (2 * LANES)), (0, 0));
        let n_rows = (w.len() / n_in).next_multiple_of(ROWS);
        self.w.clear();
        self.w.resize(n_rows * n_in / 2, 0);
        for (packed, w) in self.w.chunks_exact_mut(ROWS * n_in / 2).zip(w.chunks(ROWS * n_in)) {
            // SAFETY: as above.
            unsafe { interleave(w, n_in, packed) }
        }
    }

    /// Computes `y[token][row] = Σ_i w[row][i] · x[token][i]` for the first `n_rows` rows and `n_tokens` tokens. The
    /// outputs of successive tokens are `stride` values apart.
    ///
    /// # Safety
    /// `y` must be writable for `n_rows` values at each of `n_tokens` strides.
    pub(super) unsafe fn product(&self, [n_rows, n_tokens, n_in]: [usize; 3], y: *mut f32, stride: usize) {
        let (rows, tokens) = (self.w.chunks_exact(ROWS * n_in / 2), self.x.chunks_exact(TOKENS * n_in / 2));
        for (w, first_row) in rows.zip((0..n_rows).step_by(ROWS)) {
            for (x, first_token) in tokens.clone().zip((0..n_tokens).step_by(TOKENS)) {
                let kept = [(n_rows - first_row).min(ROWS), (n_tokens - first_token).min(TOKENS)];
                // SAFETY: as above; the tile's outputs lie within those of the whole product.
                unsafe { tile(w, x, kept, y.add(first_token * stride + first_row), stride) }
            }
        }
    }
}

/// Rounds `values` to pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(values: &[f32], pairs: &mut [Pair]) {
    for (pairs, values) in pairs.chunks_exact_mut(LANES).zip(values.chunks_exact(2 * LANES)) {
        pairs.copy_from_slice(&rounded(values));
    }
}

/// Rounds up to [`ROWS`] rows `w` `[n][n_in]` to `packed` `[n_in / 2][ROWS]`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn interleave(w: &[f32], n_in: usize, packed: &mut [Pair]) {
    // The destinations of a few columns stay in the cache while all rows are written to them.
    for (column, packed) in packed.chunks_exact_mut(LANES * ROWS).enumerate() {
        for (row, w) in w.chunks_exact(n_in).enumerate() {
            let pairs = rounded(&w[2 * LANES * column..][..2 * LANES]);
            for (to, pair) in packed.iter_mut().skip(row).step_by(ROWS).zip(pairs) {
                *to = pair;
            }
        }
    }
}

/// Computes the products of a group of rows, `w` `[n_in / 2][ROWS]`, and of tokens, `x` `[TOKENS][n_in / 2]`, and
/// writes those of the first `n_rows` rows and `n_tokens` tokens.
///
/// # Safety
/// `y` must be writable for `n_rows` values at each of `n_tokens` strides.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile(w: &[Pair], x: &[Pair], [n_rows, n_tokens]: [usize; 2], y: *mut f32, stride: usize) {
    let sums = sums(w, x);
    // The lanes of each vector that are among the rows.
    let masks = [LANES, ROWS].map(|end| u16::MAX.unbounded_shr(end.saturating_sub(n_rows) as u32));
    for (token, sums) in sums.iter().enumerate().take(n_tokens) {
        for (half, (&sum, mask)) in sums.iter().zip(masks).enumerate() {
            let to = y.wrapping_add(token * stride + half * LANES);
            // SAFETY: only values within `n_rows` are written.
            unsafe { _mm512_mask_storeu_ps(to, mask, sum) }
        }
    }
}

/// Returns 32 values in BF16, rounded to nearest even, as pairs.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(values: &[f32]) -> [Pair; LANES] {
    let (low, high) = values.split_at(LANES);
    let (low, high): (&[f32; LANES], &[f32; LANES]) =
        (low.try_into().expect("16 values"), high.try_into().expect("16 values"));
    let mut pairs = [0; LANES];
    // SAFETY: each load reads 16 values, and the store writes 16 pairs. Both types are 512 bits of any value.
    unsafe {
        let both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high.as_ptr()), _mm512_loadu_ps(low.as_ptr()));
        _mm512_storeu_si512(pairs.as_mut_ptr().cast(), transmute::<__m512bh, __m512i>(both));
    }
    pairs
}

/// Returns the products of [`tile`].
#[target_feature(enable = "avx512f,avx512bf16")]
fn sums(w: &[Pair], x: &[Pair]) -> [[__m512; 2]; TOKENS] {
    let n_pairs = x.len() / TOKENS;
    let tokens: [&[Pair]; TOKENS] = std::array::from_fn(|token| &x[token * n_pairs..][..n_pairs]);
    let mut sums = [[_mm512_setzero_ps(); 2]; TOKENS];
    for (i, w) in w.chunks_exact(ROWS).enumerate() {
        let (low, high) = w.split_at(LANES);
        // SAFETY: each load reads 16 pairs.
        let w = unsafe { [low, high].map(|half| bf16(_mm512_loadu_si512(half.as_ptr().cast()))) };
        for (sums, x) in sums.iter_mut().zip(tokens) {
            let x = bf16(_mm512_set1_epi32(x[i].cast_signed()));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm512_dpbf16_ps(*sum, w, x);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx512f")]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits of any value.
    unsafe { transmute(bits) }
}
