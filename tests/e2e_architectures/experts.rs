//! Experts of tiny random models: the captured inputs reproduce the sums in the graph, and an edit moves those sums as
//! far as the captured rows predict. Nothing is fetched.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use crate::common::generated::generate::{Random, generate};
use crate::common::generated::seeds::Seeds;
use ndarray::{Array1, Array2};
use rosi_gguf::arch::patches::Patches;
use rosi_gguf::arch::plan::{Plan, ResidualWriter};
use rosi_gguf::gguf::Gguf;
use rosi_gguf::llama::LlamaError;
use rosi_gguf::llama::activations::rows::{NO_EXPERT, Rows};
use rosi_gguf::llama::activations::{Activations, Part, input_model};
use rosi_gguf::llama::adapter::to_gguf;
use rosi_gguf::llama::batch::Batch;
use rosi_gguf::llama::capture::{Capture, CaptureHook, Keep};
use rosi_gguf::llama::ffi::{Adapter, Context, ContextSize, Model};
use rosi_gguf::llama::hook::{EvalHook, Node};
use rosi_gguf::llama::offload::{FlashAttn, Offload};
use rosi_gguf::method::direction;
use rosi_gguf::method::edit::{self, Edit};

const TOKENS: [i32; 6] = [3, 17, 5, 42, 9, 26];

/// The parts of the capture and their number of [`TOKENS`]: the last one, the one before it, the others.
const PARTS: [(Part, usize); 3] = [(Part::Last, 1), (Part::Tail, 1), (Part::Sample, 4)];

/// Runs that cover softmax, sigmoid, renormalized and scaled routing weights, output biases, weights applied to the
/// input, shared experts, a norm after the sum, and experts that share a matrix.
const RUNS: [&str; 10] = [
    "llama+moe",
    "qwen3moe",
    "qwen2moe",
    "olmoe",
    "gpt-oss",
    "llama4",
    "deepseek2",
    "glm4moe",
    "grovemoe",
    "granitemoe",
];

/// A hook that records the sum of the experts of every block, in addition to an optional capture.
struct Sums<'a> {
    capture: Option<CaptureHook<'a>>,
    /// Sums `[n_token][n_embd]` by the name of the node.
    sums: HashMap<String, Array2<f32>>,
}

fn is_sum(node: Node<'_>) -> bool {
    ["ffn_moe_out-", "ffn_adj_moe_out-"].iter().any(|start| node.name().starts_with(start))
}

impl EvalHook for Sums<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let captured = self.capture.as_mut().is_some_and(|hook| hook.wants(node));
        captured || is_sum(node)
    }

    fn take(&mut self, node: Node<'_>) -> Result<(), LlamaError> {
        if is_sum(node) {
            let shape = (node.ne()[1] as usize, node.ne()[0] as usize);
            let mut sum = Vec::new();
            node.read_rows(&(0..shape.0).collect::<Vec<_>>(), &mut sum).unwrap();
            self.sums.insert(node.name().into(), Array2::from_shape_vec(shape, sum).unwrap());
        }
        match &mut self.capture {
            Some(hook) => hook.take(node),
            None => Ok(()),
        }
    }
}

struct Tiny {
    gguf: Gguf,
    plan: Plan,
    model: Rc<Model>,
    context: Context,
}

impl Tiny {
    fn new(run: &str, dir: &Path) -> Self {
        let path = dir.join("model.gguf");
        generate(&Seeds::load(), run, false, &path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let plan = Plan::resolve(&gguf, &Patches::embedded().unwrap()).unwrap();
        let model = Model::load(&path, &Offload::none(), &mut |_| ()).unwrap();
        let (n_seq, flash_attn) = (TOKENS.len() as u32, FlashAttn::Off);
        let size = ContextSize { n_ctx: 64, n_batch: 16, n_seq, n_threads: 1, flash_attn };
        let context = Context::new(&model, size).unwrap();
        Self { gguf, plan, model, context }
    }

    /// Decodes [`TOKENS`]. With `want_all`, all of them have logits; without it, most architectures compute only the
    /// last token in the last layer.
    fn decode(&mut self, want_all: bool, hook: &mut Sums<'_>) {
        self.context.clear();
        let mut batch = Batch::default();
        for (pos, token) in TOKENS.into_iter().enumerate() {
            batch.push(token, pos, 0, want_all || pos + 1 == TOKENS.len());
        }
        self.context.decode(&mut batch, Some(hook)).unwrap();
    }

    fn capture(&mut self, want_all: bool) -> (Activations, HashMap<String, Array2<f32>>) {
        let capture = Capture::new(&self.plan).with_tail(&[1]).with_sample(4);
        let mut activations = capture.allocate(1, 4);
        let keep = Keep {
            n_tokens: TOKENS.len(),
            first: 0,
            last: vec![5],
            tail: vec![(4, 0)],
            sample: (0..4).map(|token| (token, token)).collect(),
        };
        let hook = CaptureHook::new(&capture, &mut activations, keep);
        let mut sums = Sums { capture: Some(hook), sums: HashMap::new() };
        self.decode(want_all, &mut sums);
        sums.capture.take().unwrap().finish().unwrap();
        let sums = sums.sums;
        activations.inputs.iter_mut().for_each(rosi_gguf::collect::WriterInputs::drop_unseen);
        (activations, sums)
    }

    /// Returns the sums of the experts with `edit` applied as an adapter.
    fn sums_with(&mut self, edit: &Edit) -> HashMap<String, Array2<f32>> {
        let mut bytes = to_gguf(&self.plan.architecture, &[edit.to_low_rank()]).unwrap();
        let adapter = Adapter::from_bytes(&self.model, &mut bytes).unwrap();
        self.context.set_adapter(Some(adapter), 1.0).unwrap();
        let mut sums = Sums { capture: None, sums: HashMap::new() };
        self.decode(true, &mut sums);
        self.context.set_adapter(None, 0.0).unwrap();
        sums.sums
    }

    /// Returns the values of a tensor, `[rows][ne0]`; `None` if the file does not have it.
    fn values(&self, name: &str) -> Option<Array2<f32>> {
        let info = self.gguf.tensor(name)?;
        let mut values = Vec::new();
        edit::for_each_run(info, &self.gguf.read_tensor(info).unwrap(), |_, run| values.extend(run)).unwrap();
        let columns = info.ne[0] as usize;
        Some(Array2::from_shape_vec((values.len() / columns, columns), values).unwrap())
    }
}

/// Returns the part and the row that hold `token`.
fn row_of(token: usize) -> (Part, usize) {
    match token {
        5 => (Part::Last, 0),
        4 => (Part::Tail, 0),
        _ => (Part::Sample, token),
    }
}

/// Returns Σ_k p_k W_{e_k} x_k for one row.
fn product(rows: &Rows<'_>, row: usize, weights: &Array2<f32>, n_out: usize) -> Array1<f32> {
    let (experts, x) = (rows.route.as_ref().unwrap().experts.row(row), rows.x.row(row));
    let mut sum = Array1::zeros(n_out);
    for (slot, &expert) in experts.iter().enumerate().filter(|(_, e)| **e != NO_EXPERT) {
        let n_in = weights.ncols();
        let own = weights.slice(ndarray::s![expert as usize * n_out..(expert as usize + 1) * n_out, ..]);
        sum += &own.dot(&x.slice(ndarray::s![slot * n_in..(slot + 1) * n_in]));
    }
    sum
}

fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |m, v| if v.is_nan() { f32::NAN } else { m.max(v.abs()) })
}

/// Returns the sum of the experts of `writer`. (grovemoe has a second mixture in each block.)
fn sum_of<'s>(writer: &ResidualWriter, sums: &'s HashMap<String, Array2<f32>>) -> &'s Array2<f32> {
    let name = if writer.tensor.contains("chexps") { "ffn_adj_moe_out" } else { "ffn_moe_out" };
    &sums[&format!("{name}-{}", writer.layer)]
}

/// Checks that the captured rows reproduce the sums in the graph and predict how far an edit moves them. Returns the
/// number of mixtures.
fn check(tiny: &mut Tiny, run: &str) -> usize {
    let (activations, sums) = tiny.capture(true);
    let plan = tiny.plan.clone();
    let mixtures = plan.writers.iter().enumerate().filter(|(_, w)| w.n_expert > 1);
    let mut seen = 0;
    for (index, writer) in mixtures {
        let (inputs, n_out) = (&activations.inputs[index], writer.n_out as usize);
        let weights = tiny.values(&writer.tensor).unwrap();
        let has_bias = tiny.gguf.tensor(&writer.tensor.replace(".weight", ".bias")).is_some();
        let sum = sum_of(writer, &sums);
        for token in (0..TOKENS.len()).filter(|_| !has_bias) {
            let (part, row) = row_of(token);
            let made = product(&inputs.rows(part), row, &weights, n_out);
            let wrong = largest(&made - &sum.row(token));
            let size = largest(sum.row(token).to_owned());
            assert!(wrong < 1e-3 * size, "{run} {} token {token}: {wrong} of {size}", writer.tensor);
        }
        let edit = random_edit(tiny, index, writer);
        let moved = sum_of(writer, &tiny.sums_with(&edit)) - sum;
        for (part, n) in PARTS {
            let pushes = inputs.rows(part).pushes(&edit.right);
            assert_eq!(pushes.len(), n);
            for (token, (_, row)) in
                (0..TOKENS.len()).map(|t| (t, row_of(t))).filter(|(t, _)| row_of(*t).0 == part)
            {
                let push = pushes[row] * edit.alpha as f32;
                let predicted = Array1::from(edit.left.clone()) * push;
                let (wrong, size) = (largest(&moved.row(token) - &predicted), largest(predicted));
                assert!(size > 0.0 && wrong < 2e-3 * size, "{run} {}: {wrong} of {size}", writer.tensor);
            }
        }
        let model = input_model(&[inputs], 2);
        assert_eq!(model.diagonal.len(), writer.n_in as usize, "{run} {}", writer.tensor);
        assert_eq!(inputs.mean_last().len(), edit.right.len());
        seen += 1;
    }
    seen
}

fn random_edit(tiny: &Tiny, index: usize, writer: &ResidualWriter) -> Edit {
    let mut random = Random(index as u64);
    let n = (writer.n_in * writer.n_expert) as usize;
    Edit {
        writer: index,
        tensor: writer.tensor.clone(),
        n_expert: writer.n_expert,
        left: direction::random(0, tiny.plan.n_embd as usize, 7).unwrap().unit().to_vec(),
        right: (0..n).map(|_| random.normal()).collect(),
        alpha: 0.3,
        weight_norm_sq: 1.0,
        scale: Vec::new(),
        scales_adapter: false,
        post_norm: None,
    }
}

#[test]
fn what_experts_are_given_is_what_they_add_up_to() {
    let dir = tempfile::tempdir().unwrap();
    for run in RUNS {
        let mut tiny = Tiny::new(run, dir.path());
        let whole = tiny.capture(true).0.inputs;
        let seen = check(&mut tiny, run);
        assert!(seen > 0, "{run} has no experts");
        // If only the last token is computed after the last layer's attention, only that token is captured there.
        let (activations, _) = tiny.capture(false);
        let last = tiny.plan.n_layer - 1;
        for (writer, (inputs, whole)) in tiny.plan.writers.iter().zip(activations.inputs.iter().zip(&whole)) {
            if writer.n_expert > 1 {
                let differ = largest(&inputs.last - &whole.last) / largest(whole.last.to_owned());
                assert!(differ < 1e-3, "{run} {}: {differ}", writer.tensor);
                let rows = inputs.sample.nrows(); // gpt-oss computes all tokens in the last layer too
                assert!(rows == 4 || rows == 0 && writer.layer == last, "{run} {}", writer.tensor);
            }
        }
        println!("{run}: {seen} mixtures");
    }
}
