//! Tells how well the layers of a model tell harmful from harmless prompts, from its hidden states at the last token.
//!
//! ```console
//! $ cargo run --release --example separation -- model.gguf
//! ```

use std::error::Error;
use std::path::Path;

use rosi_gguf::eval::chats;
use rosi_gguf::eval::prompts::{PromptKind, PromptSet, Split};
use rosi_gguf::llama::engine::EngineOptions;
use rosi_gguf::llama::{Capture, Engine, LlamaEngine, Offload};
use rosi_gguf::method::direction::difference_in_means;
use rosi_gguf::pipeline::session::Opened;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("expected the path of a model")?;
    // The header is checked, and the matrices that write into the residual stream are found.
    let model = Opened::new(Path::new(&path), None)?;
    let threads = std::thread::available_parallelism()?.get();
    let options = EngineOptions { path: path.into(), threads, offload: Offload::default() };
    let mut engine = LlamaEngine::load(&options, Some(model.template()?), &mut |_| ())?;

    let capture = Capture::residual_only(&model.plan);
    let prompts = PromptSet::bundled();
    let mut collect = |kind: PromptKind| {
        let texts: Vec<String> =
            prompts.select(kind, Split::Extract).iter().take(32).map(|prompt| prompt.text.clone()).collect();
        engine.collect(&chats(&texts, None), &capture, &mut |_, _| ())
    };
    let (harmful, harmless) = (collect(PromptKind::Harmful)?, collect(PromptKind::Harmless)?);

    println!("layer   AUROC      d′   ‖s‖");
    for layer in difference_in_means(&harmful, &harmless)?.separation {
        println!("{:>5}   {:.3}   {:>5.2}   {:.3}", layer.layer, layer.auroc, layer.d_prime, layer.norm);
    }
    Ok(())
}
