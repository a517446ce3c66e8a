//! Products of random matrices in ggml's own graphs.
#![allow(unsafe_code)]

use super::*;
use crate::quant;

/// A graph of one product, `[n_rows][n_in] · [n_tokens][n_in]ᵀ`, in the CPU's memory.
struct Product {
    context: *mut sys::ggml_context,
    backend: sys::ggml_backend_t,
    buffer: sys::ggml_backend_buffer_t,
    graph: *mut sys::ggml_cgraph,
    node: *mut sys::ggml_tensor,
    weights: Vec<f32>,
    x: Vec<f32>,
}

/// Returns pseudo-random values from -1 to 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

impl Product {
    fn new(ggml_type: GgmlType, [n_in, n_rows, n_tokens]: [usize; 3]) -> Self {
        let (exact, x) = (values(n_in * n_rows, 1), values(n_in * n_tokens, 2));
        let mut bytes = vec![0; ggml_type.row_bytes((n_in * n_rows) as u64).unwrap() as usize];
        quant::quantize(ggml_type, n_in, &exact, &mut bytes).unwrap();
        let mut weights = vec![0.0; exact.len()];
        quant::dequantize(ggml_type, n_in, &bytes, &mut weights).unwrap();
        let params =
            sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: the graph is built as in ggml's examples; both tensors are as large as the data written to them.
        unsafe {
            let context = sys::ggml_init(params);
            let [ne0, ne1, ne2] = [n_in, n_rows, n_tokens].map(|n| n as i64);
            let w = sys::ggml_new_tensor_2d(context, ggml_type.id(), ne0, ne1);
            let input = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, ne0, ne2);
            let node = sys::ggml_mul_mat(context, w, input);
            let backend = sys::ggml_backend_cpu_init();
            let buffer = sys::ggml_backend_alloc_ctx_tensors(context, backend);
            sys::ggml_backend_tensor_set(w, bytes.as_ptr().cast(), 0, bytes.len());
            sys::ggml_backend_tensor_set(input, x.as_ptr().cast(), 0, x.len() * 4);
            let graph = sys::ggml_new_graph(context);
            sys::ggml_build_forward_expand(graph, node);
            Self { context, backend, buffer, graph, node, weights, x }
        }
    }

    fn choose(&self, arithmetic: Arithmetic) -> bool {
        // SAFETY: the node lives as long as its context.
        let node = unsafe { &mut *self.node };
        choose(node, arithmetic);
        is_ours(node)
    }

    fn compute(&self, n_threads: i32) -> Vec<f32> {
        // SAFETY: graph and backend live; the node is F32 of this many values.
        unsafe {
            sys::ggml_backend_cpu_set_n_threads(self.backend, n_threads);
            assert_eq!(sys::ggml_backend_graph_compute(self.backend, self.graph), sys::GGML_STATUS_SUCCESS);
            let mut y = vec![0f32; ((*self.node).ne[0] * (*self.node).ne[1]) as usize];
            sys::ggml_backend_tensor_get(self.node, y.as_mut_ptr().cast(), 0, y.len() * 4);
            y
        }
    }

    /// Returns the largest difference between `y` and the F64 product, relative to the largest value of the latter.
    fn error(&self, y: &[f32], n_in: usize) -> f64 {
        let dot = |w: &[f32], x: &[f32]| -> f64 {
            w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
        };
        let rows = || self.weights.chunks(n_in);
        let exact = self.x.chunks(n_in).flat_map(|x| rows().map(move |w| dot(w, x)));
        let (mut off, mut largest) = (0f64, 0f64);
        for (exact, &found) in exact.zip(y) {
            off = off.max((exact - f64::from(found)).abs());
            largest = largest.max(exact.abs());
        }
        off / largest
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: all were created by `new`, and nothing else holds them.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer);
            sys::ggml_backend_free(self.backend);
            sys::ggml_free(self.context);
        }
    }
}

#[test]
fn products_are_exact_for_any_type_and_number_of_threads() {
    let quantized = |t: &GgmlType| t.can_quantize() && !t.needs_imatrix() && !t.is_float();
    for ggml_type in GgmlType::all().filter(quantized) {
        // 301 rows are not a multiple of the block size.
        let n_in = 512;
        let product = Product::new(ggml_type, [n_in, 301, 100]);
        let llama = product.compute(2);
        assert!(product.choose(Arithmetic::Float));
        let ours = product.compute(1);
        assert_eq!(ours, product.compute(2));
        let [ours, llama_error] = [product.error(&ours, n_in), product.error(&llama, n_in)];
        let most = if Operands::new().is_some() { 3e-3 } else { 4e-6 };
        assert!(ours < most, "{ggml_type}: {ours}");
        assert!(ours < llama_error, "{ggml_type}: {ours}, llama.cpp {llama_error}");
        // A graph that llama.cpp reuses gets its own product back.
        assert!(!product.choose(Arithmetic::Llama));
        assert_eq!(product.compute(2), llama);
    }
}

#[test]
fn few_tokens_and_floats_are_left_to_llama_cpp() {
    assert!(!Product::new(GgmlType::Q8_0, [64, 8, 95]).choose(Arithmetic::Float));
    assert!(Product::new(GgmlType::Q8_0, [64, 8, 96]).choose(Arithmetic::Float));
    assert!(!Product::new(GgmlType::F16, [64, 8, 96]).choose(Arithmetic::Float));
    assert!(!Product::new(GgmlType::F32, [64, 8, 96]).choose(Arithmetic::Float));
}

#[test]
fn every_output_is_the_product_of_its_row_and_token() {
    let product = |multiplier: &mut Multiplier, sizes: [usize; 3], stride| {
        let [n_rows, n_tokens, n_in] = sizes;
        multiplier.block = values(n_rows * n_in, 1);
        let (x, mut y) = (values(n_tokens * n_in, 2), vec![f32::NAN; n_tokens * stride]);
        multiplier.set_tokens(&x, n_in);
        // SAFETY: y has a stride for each token, of at least as many values as rows.
        unsafe { multiplier.product(sizes, &x, y.as_mut_ptr(), stride) };
        y
    };
    let kernels = [None, Operands::new()].into_iter().enumerate();
    for (i, bf16) in kernels.filter(|(i, bf16)| *i == 0 || bf16.is_some()) {
        let rounded = |x: f32| f64::from(if i == 0 { x } else { half::bf16::from_f32(x).to_f32() });
        let mut multiplier = Multiplier::new(bf16);
        // Whole tiles, and parts of tiles of rows and of tokens.
        for sizes in [[64, 24, 64], [1, 1, 32], [17, 13, 96], [47, 11, 32], [33, 100, 64]] {
            let [n_rows, n_tokens, n_in] = sizes;
            let stride = n_rows + 3;
            let found = product(&mut multiplier, sizes, stride);
            let (w, x) = (values(n_rows * n_in, 1), values(n_tokens * n_in, 2));
            for (at, &found) in found.iter().enumerate() {
                let (token, row) = (at / stride, at % stride);
                if row >= n_rows {
                    assert!(found.is_nan(), "{sizes:?}: wrote beyond the rows of token {token}");
                    continue;
                }
                let pairs = w[row * n_in..][..n_in].iter().zip(&x[token * n_in..][..n_in]);
                let exact: f64 = pairs.map(|(&w, &x)| rounded(w) * rounded(x)).sum();
                assert!(
                    (exact - f64::from(found)).abs() < 2e-5,
                    "{sizes:?} {token} {row}: {found}, not {exact}"
                );
            }
        }
    }
}
