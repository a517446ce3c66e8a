//! How often the gates open when prompts appear in other contexts.

use crate::method::detector::Opens;
use crate::method::detector::train::{InContext, Profile};

/// Returns whether harmful prompts in this context open the gates less than half as often as `plain` ones.
pub(in crate::report) fn is_weak(row: &InContext, plain: &InContext) -> bool {
    row.harmful.zip(plain.harmful).is_some_and(|(here, plain)| here < plain / 2.0)
}

/// Returns one row per context: the mean over the gates for harmful prompts at the last token.
pub(in crate::report) fn contexts(gates: &[Profile]) -> Vec<InContext> {
    let gates = || gates.iter().filter(|gate| gate.opens == Opens::Harmful && gate.before_last == 0);
    let names = gates().next().map_or(&[][..], |gate| &gate.contexts).iter().map(|row| &row.context);
    let mean = |name: &String, share: fn(&InContext) -> Option<f64>| {
        let rows = gates().flat_map(|gate| gate.contexts.iter().filter(|row| row.context == *name));
        let shares: Vec<f64> = rows.filter_map(share).collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    };
    let row = |name: &String| InContext {
        context: name.clone(),
        harmful: mean(name, |row| row.harmful),
        harmless: mean(name, |row| row.harmless),
        borderline: mean(name, |row| row.borderline),
    };
    names.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(before_last: usize, opens: Opens, rows: &[(&str, f64)]) -> Profile {
        let row = |&(context, harmful): &(&str, f64)| InContext {
            context: context.into(),
            harmful: Some(harmful),
            harmless: None,
            borderline: Some(0.1),
        };
        Profile {
            layer: 3,
            before_last,
            opens,
            threshold: 0.0,
            open_from: 1.0,
            from: -1.0,
            until: 2.0,
            auroc: 0.9,
            kinds: Vec::new(),
            contexts: rows.iter().map(row).collect(),
        }
    }

    #[test]
    fn a_context_counts_by_the_gates_from_which_the_answer_is_read() {
        let gates = [
            gate(1, Opens::Harmful, &[("plain", 0.1), ("wrapped", 1.0)]),
            gate(0, Opens::Harmful, &[("plain", 0.6), ("wrapped", 0.3)]),
            gate(0, Opens::Harmful, &[("plain", 0.8), ("wrapped", 0.3)]),
            gate(0, Opens::Borderline, &[("plain", 0.0), ("wrapped", 1.0)]),
        ];
        let rows = contexts(&gates);
        let of = |i: usize| (rows[i].context.as_str(), rows[i].harmful.unwrap(), rows[i].harmless);
        assert!(of(0).0 == "plain" && (of(0).1 - 0.7).abs() < 1e-9 && of(0).2.is_none());
        assert!(of(1).0 == "wrapped" && (of(1).1 - 0.3).abs() < 1e-9);
        assert!(is_weak(&rows[1], &rows[0]) && !is_weak(&rows[0], &rows[0]));
        assert!(contexts(&[]).is_empty());
    }
}
