//! The mean push of an edit: the only part of it that a [`ControlVector`] can represent.

use std::collections::BTreeMap;

use crate::arch::plan::{Plan, ResidualWriter};
use crate::llama::{ControlVector, LlamaError};
use crate::method::edit::Edit;

/// Architectures that can be edited but whose llama.cpp graph silently ignores control vectors.
const WITHOUT: [&str; 1] = ["plamo2"];

/// Returns `v(l) = Σ_w r_w α (rightᵀ x̄_w) left` over the edited writers w of each block l, with f64 accumulators.
///
/// x̄_w is the writer's mean input at the last token of harmful prompts, which `mean` returns by tensor name
/// (`[n_in]`); r_w is the factor by which the model scales the writer's output.
///
/// # Errors
/// Returns [`LlamaError::ControlVector`] if no part of the edit fits in a control vector.
pub fn mean_push<'a>(
    plan: &Plan,
    edits: &[Edit],
    mean: &dyn Fn(&str) -> Option<&'a [f32]>,
) -> Result<ControlVector, LlamaError> {
    let n_embd = plan.n_embd as usize;
    let mut sums = BTreeMap::<usize, Vec<f64>>::new();
    let mut left_out = Vec::new();
    for edit in edits {
        let Some(writer) = plan.writers.get(edit.writer) else { continue };
        match push_of(plan, writer, edit, mean(&edit.tensor)) {
            Ok(push) => {
                let sum = sums.entry(writer.layer).or_insert_with(|| vec![0.0; n_embd]);
                sum.iter_mut().zip(&edit.left).for_each(|(s, &l)| *s += push * f64::from(l));
            }
            Err(why) => left_out.push((edit.tensor.clone(), why)),
        }
    }
    let by_layer: BTreeMap<usize, Vec<f32>> =
        sums.into_iter().map(|(layer, sum)| (layer, sum.iter().map(|&v| v as f32).collect())).collect();
    if by_layer.is_empty() {
        let why = left_out.first().map_or("the edit is empty", |(_, why)| why);
        let reason = format!("no part of this edit fits in a control vector: {why}");
        return Err(LlamaError::ControlVector { reason });
    }
    Ok(ControlVector { n_embd, n_layer: plan.n_layer, by_layer, left_out })
}

/// Returns α r (rightᵀ x̄), the push of one writer along its left factor, or the reason why a control vector cannot
/// hold it.
fn push_of(
    plan: &Plan,
    writer: &ResidualWriter,
    edit: &Edit,
    mean: Option<&[f32]>,
) -> Result<f64, &'static str> {
    if WITHOUT.contains(&plan.architecture.as_str()) {
        return Err("llama.cpp ignores control vectors for this architecture");
    }
    if writer.layer == 0 {
        return Err("a control vector cannot reach block 0");
    }
    if writer.post_norm.is_some() {
        return Err("a norm follows the matrix, so its push depends on the prompt");
    }
    let mean = mean.filter(|mean| mean.len() == edit.right.len());
    let mean = mean.ok_or("its mean input is unknown (inputs of its experts were not captured)")?;
    let dot: f64 = mean.iter().zip(&edit.right).map(|(&x, &r)| f64::from(x) * f64::from(r)).sum();
    Ok(edit.alpha * writer.residual_scale * dot)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::gguf::{Gguf, GgufBuilder, Value};

    /// A llama of three blocks of width 4, with an FFN of width 2.
    fn plan() -> Plan {
        let mut file = GgufBuilder::new()
            .string("general.architecture", "llama")
            .kv("llama.block_count", Value::U32(3))
            .kv("llama.embedding_length", Value::U32(4))
            .f32_tensor("token_embd.weight", &[4, 2], &[0.5; 8]);
        for layer in 0..3 {
            file = file
                .f32_tensor(&format!("blk.{layer}.attn_output.weight"), &[4, 4], &[0.5; 16])
                .f32_tensor(&format!("blk.{layer}.ffn_down.weight"), &[2, 4], &[0.5; 8]);
        }
        let mut bytes = Vec::new();
        file.write_to(&mut bytes).unwrap();
        let gguf = Gguf::parse(Cursor::new(&bytes), bytes.len() as u64).unwrap();
        Plan::resolve(&gguf, &crate::arch::patches::Patches::embedded().unwrap()).unwrap()
    }

    /// An edit of one writer along the first coordinate.
    fn edit(plan: &Plan, tensor: &str, right: &[f32]) -> Edit {
        let writer = plan.writers.iter().position(|w| w.tensor == tensor).unwrap();
        Edit {
            writer,
            tensor: tensor.into(),
            n_expert: 1,
            left: vec![1.0, 0.0, 0.0, 0.0],
            right: right.to_vec(),
            alpha: 2.0,
            weight_norm_sq: 1.0,
            scale: Vec::new(),
            scales_adapter: false,
            post_norm: None,
        }
    }

    fn mean(tensor: &str) -> Option<&'static [f32]> {
        Some(if tensor.contains("ffn") { &[1.0, 3.0] } else { &[1.0, 1.0, 1.0, 1.0] })
    }

    #[test]
    fn writers_of_a_block_add_up_and_block_0_is_left_out() {
        let plan = plan();
        let edits = [
            edit(&plan, "blk.0.ffn_down.weight", &[1.0, 1.0]),
            edit(&plan, "blk.2.ffn_down.weight", &[1.0, 0.5]),
            edit(&plan, "blk.2.attn_output.weight", &[0.0, 0.0, 0.0, 1.0]),
        ];
        let found = mean_push(&plan, &edits, &mean).unwrap();
        assert_eq!(found.by_layer, BTreeMap::from([(2, vec![2.0 * (1.0 + 1.5) + 2.0, 0.0, 0.0, 0.0])]));
        assert_eq!(found.range(), (2, 2));
        assert_eq!(found.left_out.len(), 1);
        let nothing = mean_push(&plan, &edits[..1], &mean).unwrap_err().to_string();
        assert!(nothing.contains("cannot reach block 0"), "{nothing}");
        let unknown = mean_push(&plan, &edits[1..], &|_| None).unwrap_err().to_string();
        assert!(unknown.contains("experts were not captured"), "{unknown}");
    }

    #[test]
    fn what_is_written_is_what_the_loader_takes() {
        let plan = plan();
        let edits = [edit(&plan, "blk.1.ffn_down.weight", &[1.0, 1.0])];
        let written = mean_push(&plan, &edits, &mean).unwrap();
        let bytes = written.to_gguf("llama").unwrap();
        let gguf = Gguf::parse(Cursor::new(&bytes), bytes.len() as u64).unwrap();
        assert_eq!(gguf.str("controlvector.model_hint"), Some("llama"));
        assert_eq!(gguf.tensors[0].name, "direction.1");
        assert_eq!((gguf.tensors[0].n_dims, gguf.tensors[0].ne), (1, [4, 1, 1, 1]));
    }
}
