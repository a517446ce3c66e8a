//! Tests of plans for tiny models of every family, and for incomplete models.

use std::io::Cursor;

use super::*;
use crate::gguf::{GgufBuilder, Value};
use crate::util::hint::Hint;

const N_EMBD: u64 = 8;
const N_FF: u64 = 12;
const N_EXPERT: u64 = 3;

/// A model under construction; a later tensor of the same name replaces the earlier one.
#[derive(Clone)]
struct Toy {
    architecture: &'static str,
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
}

impl Toy {
    /// Returns a model without blocks.
    fn new(architecture: &'static str, n_block: u32) -> Self {
        let toy = Self { architecture, keys: Vec::new(), tensors: Vec::new() };
        let toy = toy.key("block_count", n_block).key("embedding_length", N_EMBD as u32);
        toy.tensor("token_embd.weight", &[N_EMBD, 5]).tensor("output.weight", &[N_EMBD, 5])
    }

    /// Returns a model of two blocks with attention and a dense feed-forward network.
    fn dense(architecture: &'static str) -> Self {
        let toy = Self::new(architecture, 2).attention();
        toy.blocks("ffn_down.weight", &[N_FF, N_EMBD])
    }

    /// Returns a model of two blocks with attention and experts.
    fn moe(architecture: &'static str) -> Self {
        let toy = Self::new(architecture, 2).attention().key("expert_count", N_EXPERT as u32);
        toy.blocks("ffn_down_exps.weight", &[N_FF, N_EMBD, N_EXPERT])
    }

    fn attention(self) -> Self {
        self.blocks("attn_output.weight", &[4, N_EMBD]).blocks("attn_q.weight", &[N_EMBD, N_EMBD])
    }

    fn gemma_norms(self) -> Self {
        let toy = self.blocks("post_attention_norm.weight", &[N_EMBD]);
        toy.blocks("post_ffw_norm.weight", &[N_EMBD])
    }

    fn key(self, name: &str, value: u32) -> Self {
        self.value(name, Value::U32(value))
    }

    fn value(mut self, name: &str, value: Value) -> Self {
        let key = format!("{}.{name}", self.architecture);
        self.keys.retain(|(known, _)| *known != key);
        self.keys.push((key, value));
        self
    }

    fn blocks(self, name: &str, ne: &[u64]) -> Self {
        let toy = self.tensor(&format!("blk.0.{name}"), ne);
        toy.tensor(&format!("blk.1.{name}"), ne)
    }

    fn tensor(self, name: &str, ne: &[u64]) -> Self {
        self.typed(name, ne, GgmlType::F32)
    }

    fn typed(self, name: &str, ne: &[u64], ggml_type: GgmlType) -> Self {
        let mut toy = self.without(name);
        toy.tensors.push((name.to_string(), ne.to_vec(), ggml_type));
        toy
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|(known, _, _)| known != name);
        self
    }

    fn gguf(&self) -> Gguf {
        let mut builder = GgufBuilder::new().string("general.architecture", self.architecture);
        for (key, value) in &self.keys {
            builder = builder.kv(key, value.clone());
        }
        for (name, ne, ggml_type) in &self.tensors {
            let rows: u64 = ne[1..].iter().product();
            let bytes = vec![0; (ggml_type.row_bytes(ne[0]).unwrap() * rows) as usize];
            builder = builder.tensor(name, ne, *ggml_type, bytes);
        }
        let mut file = Vec::new();
        builder.write_to(&mut file).unwrap();
        let len = file.len() as u64;
        Gguf::parse(Cursor::new(file), len).unwrap()
    }

    fn resolve(&self) -> Result<Plan> {
        Plan::resolve(&self.gguf(), &Patches::embedded().unwrap())
    }

    fn plan(&self) -> Plan {
        self.resolve().unwrap()
    }

    /// Asserts that the model is rejected with a message that contains `expected`.
    fn fails(&self, expected: &str) {
        fails(self.resolve(), expected);
    }
}

fn fails(result: Result<Plan>, expected: &str) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(message.contains(expected), "{message} lacks {expected}");
    assert!(error.hint().is_some() && !message.ends_with('.'));
}

/// Resolves the model with the given patch file.
fn resolve_with(toy: &Toy, patch: &str) -> Result<Plan> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("own.toml"), patch).unwrap();
    Plan::resolve(&toy.gguf(), &Patches::with_dir(dir.path()).unwrap())
}

fn names(writers: &[ResidualWriter]) -> Vec<&str> {
    writers.iter().map(|writer| writer.tensor.as_str()).collect()
}

#[test]
fn dense_families_have_two_writers_per_block() {
    for architecture in ["llama", "mistral3", "mistral4", "deepseek2", "qwen", "qwen2", "qwen2vl"]
        .into_iter()
        .chain(["qwen3", "qwen3vl", "gemma", "smollm3", "arcee", "internlm2", "xverse", "maincoder"])
    {
        let plan = Toy::dense(architecture).plan();
        let expected = [
            "blk.0.attn_output.weight",
            "blk.0.ffn_down.weight",
            "blk.1.attn_output.weight",
            "blk.1.ffn_down.weight",
        ];
        assert_eq!(names(&plan.writers), expected, "{architecture}");
        assert!(plan.writers.iter().all(|writer| writer.lora && writer.residual_scale == 1.0));
        assert!(plan.warnings.is_empty() && plan.nextn_writers.is_empty() && !plan.tied_embeddings);
        assert_eq!((plan.n_layer, plan.n_embd, plan.n_expert), (2, N_EMBD, 0));
        assert_eq!(plan.residual_node(1), "l_out-1");
    }
}

#[test]
fn a_writer_is_described_in_full() {
    let plan = Toy::dense("llama").plan();
    assert_eq!(plan.architecture, "llama");
    assert_eq!(plan.family, "llama.toml");
    let expected = ResidualWriter {
        layer: 1,
        tensor: "blk.1.ffn_down.weight".to_string(),
        kind: WriterKind::Ffn,
        axis: ResidualAxis::Rows,
        n_in: N_FF,
        n_out: N_EMBD,
        n_expert: 1,
        ggml_type: GgmlType::F32,
        post_norm: None,
        outer_norm: None,
        scale: None,
        scale_after_lora: true,
        residual_scale: 1.0,
        lora: true,
    };
    assert_eq!(plan.writers[3], expected);
}

#[test]
fn experts_are_counted() {
    for architecture in ["llama", "mistral3", "mistral4", "qwen2moe", "qwen3moe", "qwen3vlmoe"] {
        let plan = Toy::moe(architecture).plan();
        let ffn = &plan.writers[1];
        assert_eq!(ffn.tensor, "blk.0.ffn_down_exps.weight");
        let counts = (plan.n_expert, plan.writers[0].n_expert, ffn.n_expert);
        assert_eq!(counts, (N_EXPERT, 1, N_EXPERT));
    }
}

#[test]
fn a_shared_expert_and_a_leading_dense_block_are_writers() {
    let toy = Toy::moe("mistral4").without("blk.0.ffn_down_exps.weight");
    let toy = toy.tensor("blk.0.ffn_down.weight", &[N_FF, N_EMBD]);
    let plan = toy.tensor("blk.1.ffn_down_shexp.weight", &[N_FF, N_EMBD]).plan();
    let expected = [
        "blk.0.attn_output.weight",
        "blk.0.ffn_down.weight",
        "blk.1.attn_output.weight",
        "blk.1.ffn_down_exps.weight",
        "blk.1.ffn_down_shexp.weight",
    ];
    assert_eq!(names(&plan.writers), expected);
}

#[test]
fn gemma_writers_name_their_norms() {
    for architecture in ["gemma2", "gemma3"] {
        let plan = Toy::dense(architecture).gemma_norms().plan();
        let norms: Vec<_> = plan.writers.iter().map(|writer| writer.post_norm.as_deref()).collect();
        assert_eq!(norms[2], Some("blk.1.post_attention_norm.weight"));
        assert_eq!(norms[3], Some("blk.1.post_ffw_norm.weight"));
    }
    let toy = Toy::dense("gemma3").gemma_norms();
    let half = toy.clone().typed("blk.0.post_ffw_norm.weight", &[N_EMBD], GgmlType::F16);
    assert!(half.resolve().is_ok());
    let name = "blk.0.post_ffw_norm.weight";
    let brain = toy.clone().typed(name, &[N_EMBD], GgmlType::BF16);
    brain.fails("`blk.0.post_ffw_norm.weight`: expected F32 or F16 [8], found BF16 [8]");
    let after = "expected the gain of the norm after `blk.0.ffn_down.weight`, found none";
    toy.without(name).fails(after);
}

#[test]
fn tied_embeddings_are_seen() {
    assert!(Toy::dense("llama").without("output.weight").plan().tied_embeddings);
}

#[test]
fn the_embedding_is_never_planned() {
    let patch = r#"
architectures = ["toy"]
residual = "l_out"
embedding = "leave"
[[writer]]
tensor = "blk.{i}.ffn_down.weight"
kind = "ffn"
axis = "rows"
[[writer]]
tensor = "token_embd.weight"
kind = "embedding"
axis = "cols"
required = true
lora = false
residual_scale_times = "sqrt_n_embd"
"#;
    let toy = Toy::dense("toy").without("blk.0.attn_output.weight");
    let toy = toy.without("blk.1.attn_output.weight");
    for toy in [toy.clone(), toy.clone().without("output.weight")] {
        let plan = resolve_with(&toy, patch).unwrap();
        assert_eq!(names(&plan.writers), ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]);
    }
    let bare = resolve_with(&toy.without("token_embd.weight"), patch);
    fails(bare, "block 0: expected tensor `token_embd.weight`, found none (own.toml)");
}

#[test]
fn missing_writers_are_named_with_their_alternatives() {
    let toy = Toy::dense("llama");
    let one = toy.clone().without("blk.1.attn_output.weight");
    one.fails("block 1: expected tensor `blk.1.attn_output.weight`, found none (llama.toml)");
    let any = toy.without("blk.0.ffn_down.weight");
    any.fails("block 0: expected tensor `blk.0.ffn_down.weight` or `blk.0.ffn_down_exps.weight`");
}

#[test]
fn wrong_shapes_are_refused() {
    let name = "blk.0.ffn_down.weight";
    let dense = Toy::dense("llama");
    for (ne, found) in [
        (vec![N_EMBD, N_FF], "[8, 12]"),
        (vec![N_FF], "[12]"),
        (vec![N_FF, N_EMBD, 2], "[12, 8, 2]"),
        (vec![0, N_EMBD], "[0, 8]"),
    ] {
        let expected = format!("tensor `{name}`: expected [n, 8], found F32 {found}");
        dense.clone().tensor(name, &ne).fails(&expected);
    }
    let moe = Toy::moe("llama");
    let few = moe.clone().tensor("blk.1.ffn_down_exps.weight", &[N_FF, N_EMBD, 2]);
    few.fails("`blk.1.ffn_down_exps.weight`: expected [n, 8, 3], found F32 [12, 8, 2]");
    let none = moe.key("expert_count", 0);
    none.fails("expected [n, 8, 0], found F32 [12, 8, 3]");
    let turned = dense.tensor("token_embd.weight", &[5, N_EMBD]);
    turned.fails("tensor `token_embd.weight`: expected [8, n], found F32 [5, 8]");
}

#[test]
fn scales_are_found_and_checked() {
    let toy = Toy::moe("qwen3moe").tensor("blk.0.attn_output.scale", &[1]);
    let toy = toy.tensor("blk.0.ffn_down_exps.scale", &[N_EXPERT]);
    let plan = toy.plan();
    let scales: Vec<_> = plan.writers.iter().map(|writer| writer.scale.as_deref()).collect();
    let expected = [Some("blk.0.attn_output.scale"), Some("blk.0.ffn_down_exps.scale"), None, None];
    assert_eq!(scales, expected);
    assert!(plan.writers.iter().all(|writer| !writer.scale_after_lora));
    let short = toy.tensor("blk.0.ffn_down_exps.scale", &[1]);
    short.fails("tensor `blk.0.ffn_down_exps.scale`: expected F32 [3], found F32 [1]");
}

#[test]
fn a_lora_that_llama_cpp_would_abort_on_is_left_out() {
    let toy = Toy::dense("llama").tensor("blk.0.ffn_down.scale", &[1]);
    let name = "blk.0.ffn_down.weight";
    assert!(toy.plan().writers[1].lora);
    let plan = toy.typed(name, &[64, N_EMBD], GgmlType::NVFP4).plan();
    assert!(!plan.writers[1].lora && plan.writers[3].lora);
    let tensor = name.to_string();
    assert_eq!(plan.warnings, [PlanWarning::NoLora { tensor }]);
    assert!(plan.warnings[0].to_string().contains(name));
}

#[test]
fn residual_scale_comes_from_the_key_or_the_rule() {
    let patch = |rule: &str| {
        let tensor = "tensor = \"blk.{i}.ffn_down.weight\"\nkind = \"ffn\"\naxis = \"rows\"";
        format!("architectures = [\"toy\"]\nresidual = \"r\"\n[[writer]]\n{tensor}\n{rule}\n")
    };
    let toy = Toy::dense("toy");
    let scale =
        |toy: &Toy, rule: &str| resolve_with(toy, &patch(rule)).map(|plan| plan.writers[0].residual_scale);
    let rule = "residual_scale_key = \"{arch}.residual_scale\"\nresidual_scale = 1.5";
    let depth = "residual_scale = 3.0\nresidual_scale_times = \"rsqrt_n_layer\"";
    assert_eq!(scale(&toy, "").unwrap(), 1.0);
    assert_eq!(scale(&toy, rule).unwrap(), 1.5);
    assert!((scale(&toy, depth).unwrap() - 3.0 / 2f64.sqrt()).abs() < 1e-15);
    let keyed = |value| toy.clone().value("residual_scale", value);
    assert_eq!(scale(&keyed(Value::F32(0.25)), rule).unwrap(), 0.25);
    assert_eq!(scale(&keyed(Value::F32(0.0)), rule).unwrap(), 1.0);
    let error = scale(&keyed(Value::F32(f32::NAN)), rule).unwrap_err().to_string();
    let expected = "key `toy.residual_scale`: expected a finite float, found NaN";
    assert_eq!(error, expected);
    assert!(scale(&keyed(Value::Bool(true)), rule).is_err());
}

#[test]
fn nextn_blocks_are_kept_apart() {
    let toy = Toy::moe("deepseek2").key("nextn_predict_layers", 1);
    let toy = toy.without("blk.1.attn_output.weight");
    let plan = toy.tensor("blk.1.nextn.eh_proj.weight", &[2 * N_EMBD, N_EMBD]).plan();
    assert_eq!((plan.n_layer, plan.n_layer_nextn), (1, 1));
    assert_eq!(names(&plan.nextn_writers), ["blk.1.ffn_down_exps.weight"]);
    assert!(plan.writers.iter().all(|writer| writer.layer == 0));
    assert!(!plan.nextn_writers[0].lora && plan.warnings.is_empty());
}

#[test]
fn what_looks_like_a_writer_is_never_skipped_in_silence() {
    let extra = ["blk.1.ssm_out.weight", "blk.0.ffn_down_shexp.weight", "blk.7.cross_proj.weight"];
    let mut toy = Toy::dense("llama");
    for name in extra {
        toy = toy.tensor(name, &[N_FF, N_EMBD]);
    }
    let toy = toy.tensor("blk.0.attn_out_norm.weight", &[N_EMBD]);
    let toy = toy.tensor("blk.0.down.weight", &[N_EMBD, N_FF]).tensor("v.0.out.weight", &[4, N_EMBD]);
    let plan = toy.plan();
    let uncovered =
        |tensor: &str| PlanWarning::Uncovered { tensor: tensor.into(), family: "llama.toml".into() };
    assert_eq!(plan.warnings, extra.map(uncovered));
    assert!(plan.warnings[0].hint().unwrap().contains("not_writers"));
}

#[test]
fn not_writers_and_layers_are_heeded() {
    let patch = r#"
architectures = ["toy"]
residual = "l_out"
not_writers = ["blk.{i}.attn_output.weight"]
[[writer]]
tensor = "blk.{i}.ffn_down.weight"
kind = "ffn"
axis = "rows"
required = true
layers = { from = 1 }
"#;
    let toy = Toy::dense("toy").without("blk.0.ffn_down.weight");
    let plan = resolve_with(&toy, patch).unwrap();
    assert_eq!(names(&plan.writers), ["blk.1.ffn_down.weight"]);
    assert!(plan.warnings.is_empty());
    let late = resolve_with(&toy, &patch.replace("from = 1", "from = 9"));
    fails(late, "own.toml: expected at least one writer in the model, found none");
}

#[test]
fn bad_keys_are_refused() {
    let toy = Toy::dense("llama");
    let count = "key `llama.block_count`: expected an integer from 1 to 4096, found";
    for (found, value) in
        [("0", Value::U32(0)), ("5000", Value::U32(5000)), ("a value of another type", Value::I32(-1))]
    {
        let bad = toy.clone().value("block_count", value);
        bad.fails(&format!("{count} {found}"));
    }
    let wide = toy.clone().key("embedding_length", 1 << 21);
    wide.fails("`llama.embedding_length`: expected an integer from 1 to 1048576, found 2097152");
    let drafting = toy.clone().key("nextn_predict_layers", 2);
    drafting.fails("expected an integer from 0 to 1, found 2");
    let mistyped = toy.clone().value("expert_count", Value::Bool(true));
    mistyped.fails("`llama.expert_count`");
    let mut bare = toy;
    bare.keys.retain(|(key, _)| !key.ends_with("embedding_length"));
    bare.fails("key `llama.embedding_length`: expected a value, found none");
}

#[test]
fn split_files_and_unknown_architectures_are_refused() {
    let mut toy = Toy::dense("llama");
    toy.keys.push(("split.count".to_string(), Value::U16(3)));
    toy.fails("the model is split into 3 files, but not all of them were found");
    let hint = toy.resolve().unwrap_err().hint().unwrap();
    assert!(hint.contains("all its files in one folder"));
    Toy::dense("lama").fails("unknown architecture `lama`: no patch file contains it, similar names: llama");
}

#[test]
fn a_pattern_can_ask_for_another_tensor_of_the_block() {
    let toy = Toy::new("nemotron_h_moe", 2).key("expert_count", N_EXPERT as u32);
    let toy = toy.tensor("blk.0.ssm_out.weight", &[4, N_EMBD]);
    let latent = toy.clone().tensor("blk.1.ffn_latent_up.weight", &[5, N_EMBD]);
    let latent = latent.tensor("blk.1.ffn_down_exps.weight", &[N_FF, 5, N_EXPERT]).plan();
    assert_eq!(names(&latent.writers), ["blk.0.ssm_out.weight", "blk.1.ffn_latent_up.weight"]);
    assert_eq!([latent.writers[0].lora, latent.writers[1].lora], [true, false]);
    assert_eq!(latent.residual_node(1), "nemotron_h_block_out-1");
    let last = Toy::dense("step35").plan();
    assert_eq!([0, 1].map(|layer| last.residual_node(layer)), ["attn_norm_in-1", "h_nextn"]);
    let wide = toy.clone().tensor("blk.1.ffn_down_exps.weight", &[N_FF, N_EMBD, N_EXPERT]).plan();
    assert_eq!(names(&wide.writers)[1], "blk.1.ffn_down_exps.weight");
    toy.fails("block 1: expected tensor `blk.1.attn_output.weight` or `blk.1.ssm_out.weight` or");
}

#[test]
fn one_tensor_can_mean_two_things() {
    let toy = Toy::dense("kimi-linear").tensor("blk.0.ssm_f_a.weight", &[N_EMBD, 2]);
    let plan = toy.blocks("attn_output.scale", &[1]).plan();
    let lora: Vec<bool> = plan.writers.iter().map(|writer| writer.lora).collect();
    let scales: Vec<bool> = plan.writers.iter().map(|writer| writer.scale.is_some()).collect();
    assert_eq!((lora, scales), (vec![false, true, true, true], vec![false, false, true, false]));
    let toy = Toy::moe("cohere2moe").tensor("blk.1.ffn_down_shexp.weight", &[N_FF, N_EMBD]);
    let plan = toy.tensor("blk.1.ffn_up_shexp.weight", &[N_EMBD, N_FF]).plan();
    let factors: Vec<f64> = plan.writers.iter().map(|writer| writer.residual_scale).collect();
    assert_eq!(factors, [1.0, 1.0, 1.0, 0.5, 0.5]);
}

#[test]
fn a_second_norm_is_named_too() {
    let toy = Toy::moe("gemma4").gemma_norms().blocks("ffn_down.weight", &[N_FF, N_EMBD]);
    let toy =
        toy.tensor("blk.1.ffn_gate_inp.weight", &[N_EMBD, N_EXPERT]).without("blk.0.ffn_down_exps.weight");
    let toy = toy.tensor("blk.1.post_ffw_norm_1.weight", &[N_EMBD]);
    toy.fails("expected the gain of the norm after `blk.1.ffn_down_exps.weight`, found none");
    let plan = toy.tensor("blk.1.post_ffw_norm_2.weight", &[N_EMBD]).plan();
    let norms = plan.writers.iter().map(|w| (w.post_norm.as_deref(), w.outer_norm.as_deref()));
    let norms: Vec<_> = norms.collect();
    assert_eq!(norms[1], (Some("blk.0.post_ffw_norm.weight"), None));
    assert_eq!(norms[3], (Some("blk.1.post_ffw_norm_1.weight"), Some("blk.1.post_ffw_norm.weight")));
    assert_eq!(norms[4].0, Some("blk.1.post_ffw_norm_2.weight"));
}

#[test]
fn a_norm_can_depend_on_a_key() {
    let toy = Toy::dense("chameleon").blocks("attn_norm.weight", &[N_EMBD]);
    let toy = toy.blocks("ffn_norm.weight", &[N_EMBD]);
    assert!(toy.plan().writers.iter().all(|writer| writer.post_norm.is_none()));
    let plan = toy.clone().value("swin_norm", Value::Bool(true)).plan();
    assert_eq!(plan.writers[1].post_norm.as_deref(), Some("blk.0.ffn_norm.weight"));
    assert!(toy.value("swin_norm", Value::Bool(false)).plan().writers[0].post_norm.is_none());
}

#[test]
fn experts_can_share_a_matrix() {
    let toy = Toy::moe("grovemoe").key("expert_count", 6).value("expert_group_scale", Value::F32(0.05));
    let toy = toy.blocks("ffn_down_exps.weight", &[N_FF, N_EMBD, 6]);
    let toy = toy.blocks("ffn_down_chexps.weight", &[5, N_EMBD, 3]);
    toy.fails("key `grovemoe.experts_per_group`: expected a value, found none");
    let plan = toy.clone().key("experts_per_group", 2).plan();
    assert_eq!((plan.writers[2].n_expert, plan.writers[2].residual_scale as f32), (3, 0.05));
    toy.key("experts_per_group", 3).fails("`blk.0.ffn_down_chexps.weight`: expected [n, 8, 2]");
}
