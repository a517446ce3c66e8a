//! Whether a rewritten file behaves like the exact edit: compares the adapter on the base, the file that preserves the
//! edit, and the file rounded to nearest, on prompts of the report split.

use std::path::Path;

use rosi_gguf::arch::plan::Plan;
use rosi_gguf::arch::window::Window;
use rosi_gguf::eval::prompts::{PromptSet, Split};
use rosi_gguf::eval::{Evaluator, PerKind, Questions, Score, chats};
use rosi_gguf::gguf::{Gguf, Rewrite};
use rosi_gguf::llama::activations::{self, Activations};
use rosi_gguf::llama::{Capture, Engine, EngineOptions, LlamaEngine, Offload};
use rosi_gguf::method::direction::{self, Directions};
use rosi_gguf::method::edit::{self, Edit, RightFactors};
use rosi_gguf::method::fidelity::{Fidelity, Snapshot};
use rosi_gguf::method::gate::{GateOptions, Kernel, TrainingSet};
use rosi_gguf::method::requant::{self, Requant};
use rosi_gguf::method::verify::verify;
use rosi_gguf::quant::preserve::InputModel;

use crate::{Failure, cases, table};

/// The edits to compare: method, layer of the direction, strength.
const EDITS: [(&str, usize, f64); 3] =
    [("contrast", 15, 0.01), ("published", 15, 0.01), ("published", 15, 0.03)];
/// κ of the gate, and its layers, as in the defaults of `inject`.
const CONTRAST: f64 = 1.0;
const WINDOW: Window = Window { from: 0.3, until: 0.8 };
/// Numbers of prompts.
const PROMPTS: PerKind<usize> = PerKind { harmful: 32, harmless: 32, borderline: 0 };

struct Subject {
    gguf: Gguf,
    plan: Plan,
    sets: PerKind<Activations>,
    /// Log-odds of refusal of each prompt.
    odds: PerKind<Vec<f64>>,
    directions: Directions,
    questions: Questions,
    evaluator: Evaluator,
    base: (Snapshot, Score),
}

fn load(gguf: &Gguf, path: &Path) -> Result<LlamaEngine, Failure> {
    let options = EngineOptions { path: path.to_path_buf(), threads: 2, offload: Offload::none() };
    Ok(LlamaEngine::load(&options, gguf.str("tokenizer.chat_template"), &mut |_| ())?)
}

impl Subject {
    fn new(engine: &mut LlamaEngine, gguf: Gguf, plan: Plan) -> Result<Self, Failure> {
        let prompts = PromptSet::bundled();
        let capture = Capture::new(&plan).with_sample(256).with_tail(&[1]);
        let questions = Questions::of(&prompts, Split::Report, PROMPTS);
        let (evaluator, base) = Evaluator::new(engine, questions.clone())?;
        let mut odds = PerKind::<Vec<f64>>::default();
        let extract = Questions::of(&prompts, Split::Extract, Questions::ALL);
        let sets = PerKind::try_from_fn(|kind| {
            let chats = chats(&extract[kind], None);
            engine.collect(&chats, &capture, &mut |_, l| odds[kind].push(evaluator.odds(l)))
        })?;
        let directions = direction::difference_in_means(&sets.harmful, &sets.harmless)?;
        let base = (Snapshot::of(engine, &questions, &Capture::residual_only(&plan))?, base.score);
        Ok(Self { gguf, plan, sets, odds, directions, questions, evaluator, base })
    }

    fn edits(&self, method: &str, layer: usize, strength: f64) -> Result<Vec<Edit>, Failure> {
        let weights = self
            .plan
            .writers
            .iter()
            .map(|w| edit::read_weights(&self.gguf, w))
            .collect::<Result<Vec<_>, _>>()?;
        let rights = if method == "published" { edit::mean_rows(&weights) } else { self.gates()? };
        Ok(edit::edits(&self.plan, &weights, &rights, &self.directions.by_layer[layer], strength)?)
    }

    fn gates(&self) -> Result<RightFactors, Failure> {
        let writers = self.plan.writers_in(WINDOW);
        let training_set = TrainingSet {
            inputs: self.sets.as_ref().map(|s| s.inputs.as_slice()),
            odds: self.odds.as_ref().map(Vec::as_slice),
        };
        let kernel = Kernel::of(training_set, &writers, None, &mut || ())?;
        Ok(kernel.right_factors(CONTRAST, &GateOptions::default(), self.plan.writers.len())?)
    }

    fn inputs(&self) -> Vec<InputModel> {
        let sets = self.sets.values();
        let model = |writer: usize| activations::input_model(&sets.map(|set| &set.inputs[writer]), 16);
        (0..self.plan.writers.len()).map(model).collect()
    }

    /// Returns the snapshot and score of the model in `engine`.
    fn seen(&self, engine: &mut LlamaEngine) -> Result<(Snapshot, Score), Failure> {
        let snapshot = Snapshot::of(engine, &self.questions, &Capture::residual_only(&self.plan))?;
        Ok((snapshot, self.evaluator.evaluate(engine)?.score))
    }

    /// Returns the row for the base with an adapter of negligible strength.
    fn floor(&self, engine: &mut LlamaEngine) -> Result<Vec<String>, Failure> {
        let edits = self.edits("contrast", EDITS[0].1, 1e-8)?;
        engine.apply(&edits.iter().map(Edit::to_low_rank).collect::<Vec<_>>())?;
        let (snapshot, score) = self.seen(engine)?;
        let fidelity =
            Fidelity::of(&self.base.0, &self.base.0, &snapshot, &self.directions.by_layer[EDITS[0].1]);
        let mut row = vec!["adapter of negligible strength".to_owned(), "–".into(), "–".into(), "–".into()];
        row.extend([fidelity.kl_harmful, fidelity.kl_harmless].map(|kl| format!("{kl:.4}")));
        row.extend([score.harmful.refused().to_string(), score.harmless.refused().to_string()]);
        Ok(row)
    }

    /// Returns the row for the file that `requant` writes.
    fn file(
        &self,
        edits: &[Edit],
        inputs: &[InputModel],
        requant: Requant,
        exact: &Snapshot,
        layer: usize,
    ) -> Result<Vec<String>, Failure> {
        let folder = std::env::temp_dir().join(format!("rosi-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("edited.gguf");
        let mut replace = |tensor: &rosi_gguf::gguf::TensorInfo| {
            let Some(edit) = edits.iter().find(|e| e.tensor == tensor.name) else { return Ok(None) };
            let bytes = self.gguf.read_tensor(tensor)?;
            Ok(Some(requant::apply(edit, tensor, bytes, requant, &inputs[edit.writer])?))
        };
        let mut file = std::fs::File::create(&path)?;
        Rewrite::copy(&self.gguf).write_to(&mut file, &mut replace, &mut |_, _| Ok(()))?;
        let written = Gguf::open(&path)?;
        let verification = verify(&self.gguf, &written, &edits.to_vec().into(), &mut |_, _| ())?;
        let (snapshot, score) = self.seen(&mut load(&self.gguf, &path)?)?;
        std::fs::remove_dir_all(&folder)?;
        let fidelity = Fidelity::of(&self.base.0, exact, &snapshot, &self.directions.by_layer[layer]);
        Ok(vec![
            requant.name(),
            format!("{:.3}", verification.gain.unwrap_or(0.0)),
            format!("{:.3}", verification.cosine.unwrap_or(0.0)),
            format!("{:.3}", fidelity.mean_shift),
            format!("{:.4}", fidelity.kl_harmful),
            format!("{:.4}", fidelity.kl_harmless),
            score.harmful.refused().to_string(),
            score.harmless.refused().to_string(),
        ])
    }
}

/// Prints the table.
pub fn run() -> Result<(), Failure> {
    let (name, gguf, plan) = cases::open(1)?;
    let path = gguf.path.clone();
    let mut engine = load(&gguf, &path)?;
    let subject = Subject::new(&mut engine, gguf, plan)?;
    let inputs = subject.inputs();
    let plain = |name: &str, score: &Score| {
        let dash = || String::from("–");
        let counts = [score.harmful.refused().to_string(), score.harmless.refused().to_string()];
        [vec![name.to_owned(), dash(), dash(), dash(), dash(), dash()], counts.to_vec()].concat()
    };
    let mut rows = vec![plain("base", &subject.base.1)];
    rows.push(subject.floor(&mut engine)?);
    for (method, layer, strength) in EDITS {
        let edits = subject.edits(method, layer, strength)?;
        engine.apply(&edits.iter().map(Edit::to_low_rank).collect::<Vec<_>>())?;
        let (exact, score) = subject.seen(&mut engine)?;
        rows.push(plain(&format!("{method} {:.1} %: exact (adapter)", strength * 100.0), &score));
        for requant in [Requant::Preserve, Requant::Nearest] {
            rows.push(subject.file(&edits, &inputs, requant, &exact, layer)?);
        }
    }
    let text = format!(
        "{name} Q4_K_M, {} harmful and {} harmless prompts of the report split. Shift: shift of the residual \
         stream along the direction on harmful prompts at the last token, over all layers, as a share of \
         the exact edit's shift. KL: divergence of the first answer token from the exact edit, in nats. In \
         the row of the adapter of negligible strength, KL is relative to the base: the floor caused by ggml \
         rounding differently when an adapter is applied.",
        PROMPTS.harmful, PROMPTS.harmless
    );
    let header = [
        "edit",
        "gain",
        "cosine",
        "shift",
        "KL harmful",
        "KL harmless",
        "harmful refused",
        "harmless refused",
    ];
    table::print("Behavior of the rewritten file", &text, &header, &rows);
    Ok(())
}
