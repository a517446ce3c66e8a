//! Editing and writing a file, compared with copying it and with quantizing it from scratch.

use std::path::Path;
use std::process::Command;

use rosi_gguf::gguf::Gguf;
use rosi_gguf::method::requant::Requant;
use rosi_gguf::method::verify::verify;

use crate::clock::{Spent, medians};
use crate::model::{Model, threads};
use crate::{Effort, Failure, table};

const HEADER: [&str; 5] = ["work", "wall, s", "CPU, s", "wall / `cp`", "wall / `cp` and `sync`"];

/// Prints the tables.
pub fn run(effort: Effort) -> Result<(), Failure> {
    effort.models().iter().try_for_each(|name| measure(&Model::named(name)?, effort))
}

fn measure(model: &Model, effort: Effort) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let to = |name: &str| dir.path().join(name);
    let from = model.gguf.path.as_path();
    let edits = model.edits()?;
    let write = |path: &Path, how| model.write(&edits, how, path);
    let (ours, nearest, copy) = (to("ours.gguf"), to("nearest.gguf"), to("copy.gguf"));
    let program = |command: &mut Command| -> Result<(), Failure> {
        let status = command.status()?;
        if status.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
    };
    let cp = || program(Command::new("cp").arg(from).arg(to("cp.gguf")));
    let cp_and_sync = || {
        program(Command::new("cp").arg(from).arg(to("synced.gguf")))?;
        program(Command::new("sync").arg(to("synced.gguf")))
    };
    let check =
        || Ok(verify(&model.gguf, &Gguf::open(&ours)?, &edits.clone().into(), &mut |_, _| ()).map(drop)?);
    let (mut first, mut second, mut third) = (cp, cp_and_sync, check);
    // Create the file that the first round verifies.
    write(&ours, Some(Requant::Preserve))?;
    let spent = medians(
        effort.rounds(),
        &mut [
            &mut first,
            &mut second,
            &mut || write(&copy, None),
            &mut || write(&ours, Some(Requant::Preserve)),
            &mut || write(&nearest, Some(Requant::Nearest)),
            &mut third,
        ],
    )?;
    let names = [
        "`cp`",
        "`cp` and `sync` of the copy",
        "copy without an edit",
        "edit and write (preserve)",
        "edit and write (nearest)",
        "verify the written file",
    ];
    let mut rows: Vec<Vec<String>> = names.iter().zip(&spent).map(|(name, s)| row(name, s, &spent)).collect();
    if let Some(quantized) = llama_quantize(model, &to("quantized.gguf"))? {
        rows.push(row("`llama-quantize --allow-requantize` to the same type", &quantized, &spent));
    }
    let text = format!(
        "{}, {} MB, {} of {} tensors edited; source in the page cache, {} threads, median of {}. rosi-gguf \
         flushes files to disk before renaming them; `cp` and llama-quantize do not.",
        model.name(),
        model.gguf.file_len / 1_000_000,
        edits.len(),
        model.gguf.tensors.len(),
        threads(),
        effort.rounds(),
    );
    table::print(&format!("Rewrite: {}", model.name()), &text, &HEADER, &rows);
    Ok(())
}

fn row(name: &str, spent: &Spent, all: &[Spent]) -> Vec<String> {
    let beside = |other: &Spent| format!("{:.2} ×", spent.wall / other.wall);
    vec![
        name.to_owned(),
        format!("{:.2}", spent.wall),
        format!("{:.2}", spent.cpu),
        beside(&all[0]),
        beside(&all[1]),
    ]
}

/// Measures llama-quantize once, since it is slow; returns `None` if `scripts/bench` found no llama-quantize.
fn llama_quantize(model: &Model, to: &Path) -> Result<Option<Spent>, Failure> {
    let Some(folder) = std::env::var_os("ROSI_BENCH_LLAMA") else { return Ok(None) };
    let ftype = model.gguf.u64("general.file_type").ok_or("the model has no general.file_type")?;
    let mut quantize = || -> Result<(), Failure> {
        let output = Command::new(Path::new(&folder).join("llama-quantize"))
            .args(["--allow-requantize".as_ref(), model.gguf.path.as_os_str(), to.as_os_str()])
            .args([ftype.to_string(), threads().to_string()])
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    };
    Ok(Some(medians(1, &mut [&mut quantize])?[0]))
}
