//! Compares edits found on other devices with the one found on the CPU.

use std::path::Path;

use rosi_gguf::method::stored::StoredEdit;

/// Returns the cosine of two vectors, accumulated in f64.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Checks that both edits use the same direction of the same layer, and prints how close they are.
pub fn same_direction(what: &str, cpu: &Path, other: &Path) {
    let [cpu, other] = [cpu, other].map(|path| StoredEdit::open(path).unwrap().0);
    let along = cosine(cpu.directions[0].unit(), other.directions[0].unit());
    let rights = cpu.writers.iter().map(|writer| {
        let same = other.writers.iter().find(|w| w.tensor == writer.tensor);
        same.map_or(0.0, |w| cosine(&writer.right, &w.right))
    });
    let least = rights.fold(1.0, f64::min);
    let [a, b] = [&cpu.facts, &other.facts];
    eprintln!(
        "{what}: layers {} and {}, cosine of the directions {along:.6}, norms {:.4} and {:.4}, \
         strengths {:.5} and {:.5}, least cosine of a right factor {least:.4}",
        a.chosen.layer, b.chosen.layer, a.norms[0], b.norms[0], a.strength, b.strength
    );
    assert_eq!(
        (a.chosen.layer, a.chosen.direction_source),
        (b.chosen.layer, b.chosen.direction_source),
        "{what}"
    );
    assert!(along >= 0.99, "{what}: {along}");
    assert_eq!(cpu.writers.len(), other.writers.len(), "{what}");
}
