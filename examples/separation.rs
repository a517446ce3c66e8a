//! Prints how well each layer of a model separates harmful from harmless prompts, by its hidden states at the last
//! token.
//!
//! ```console
//! $ cargo run --release --example separation -- model.gguf
//! ```

use std::error::Error;
use std::path::Path;

use rosi_gguf::collect::{
    Capture, Engine, EngineOptions, LlamaEngine, Offload, PromptKind, PromptSet, Split, chats,
};
use rosi_gguf::direction::difference_in_means;
use rosi_gguf::open::Gguf;
use rosi_gguf::plan::plan_of;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("expected the path of a model file")?;
    // Check the header, and find the matrices that write into the residual stream.
    let model = Gguf::open(Path::new(&path))?;
    let plan = plan_of(&model)?;
    let threads = std::thread::available_parallelism()?.get();
    let options = EngineOptions { path: path.into(), threads, offload: Offload::default() };
    let mut engine = LlamaEngine::load(&options, model.str("tokenizer.chat_template"), &mut |_| ())?;

    let capture = Capture::residual_only(&plan);
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
