//! Parses and validates the text of one patch file.

use super::{ArchPatch, PatchError, ResidualAxis, WriterKind, WriterPattern};

/// Parses and validates one patch file.
pub(super) fn parse(file: &str, text: &str) -> Result<ArchPatch, PatchError> {
    let mut patch: ArchPatch = toml::from_str(text).map_err(|error| syntax_error(file, text, &error))?;
    patch.file = file.to_string();
    check(&patch)?;
    Ok(patch)
}

fn syntax_error(file: &str, text: &str, error: &toml::de::Error) -> PatchError {
    let start = error.span().map_or(0, |span| span.start);
    let newlines = text.bytes().take(start).filter(|byte| *byte == b'\n');
    let (line, message) = (1 + newlines.count(), error.message().trim().replace('\n', " "));
    let file = file.to_string();
    PatchError::Syntax { file, line, message }
}

/// Validates the rules that serde cannot express.
fn check(patch: &ArchPatch) -> Result<(), PatchError> {
    let at = Place(&patch.file, String::new());
    let reasons = || patch.refused.iter().flat_map(|(name, reason)| [name, reason]);
    let named = patch.architectures.iter().chain(reasons()).all(|text| !text.is_empty());
    at.ensure(named, "architectures", "names and reasons", "an empty string")?;
    let any = patch.names().next().is_some();
    at.ensure(any, "architectures", "at least one name", "none")?;
    let editable = !patch.architectures.is_empty();
    at.ensure(!editable || !patch.residual.is_empty(), "residual", "a name", "nothing")?;
    for name in &patch.not_writers {
        at.tensor_name("not_writers", name)?;
    }
    let known = patch.no_detectors.iter().all(|name| patch.architectures.contains(name));
    at.ensure(known, "no_detectors", "names from `architectures`", "another name")?;
    let count = patch.writers.len();
    let expected = ["none without `architectures`", "at least one"][usize::from(editable)];
    at.ensure((count > 0) == editable, "writer", expected, &count.to_string())?;
    for (index, writer) in patch.writers.iter().enumerate() {
        let at = Place(&patch.file, format!("writer[{index}]."));
        check_writer(&at, writer)?;
        let group = patch.writers.iter().filter(|other| other.any_of == writer.any_of);
        if let Some(label) = &writer.any_of {
            at.ensure(group.count() > 1, "any_of", "a label of two or more writers", label)?;
        }
        let mut others = patch.writers[..index].iter().filter(|other| other.tensor == writer.tensor);
        let twice = others.any(|other| !other.excludes(writer));
        at.ensure(!twice, "tensor", "each tensor at most once per block", &writer.tensor)?;
    }
    Ok(())
}

fn check_writer(at: &Place, writer: &WriterPattern) -> Result<(), PatchError> {
    let (tensor, per_block) = (&writer.tensor, writer.per_block());
    at.tensor_name("tensor", tensor)?;
    let outside = matches!(writer.kind, WriterKind::Embedding | WriterKind::Other);
    at.ensure(per_block || outside, "tensor", "a name with {i}", tensor)?;
    for (field, name) in [
        ("with", &writer.with),
        ("without", &writer.without),
        ("post_norm", &writer.post_norm),
        ("outer_norm", &writer.outer_norm),
        ("scale", &writer.scale),
    ] {
        let Some(name) = name else { continue };
        at.tensor_name(field, name)?;
        let same = name.contains("{i}") == per_block;
        at.ensure(same, field, "{i} if and only if `tensor` has it", name)?;
    }
    let ok = !(writer.required && writer.any_of.is_some());
    at.ensure(ok, "required", "either `required` or `any_of`", "both")?;
    let ok = !writer.experts || writer.axis == ResidualAxis::Rows;
    at.ensure(ok, "axis", "`rows` with `experts`", "`cols`")?;
    // A lookup is not a multiplication, so it has no input for an edit to act on.
    let ok = writer.kind == WriterKind::Embedding || writer.axis == ResidualAxis::Rows;
    at.ensure(ok, "axis", "`rows` except for the embedding", "`cols`")?;
    let ok = writer.post_norm.is_some() || !writer.post_norm_optional;
    at.ensure(ok, "post_norm_optional", "a `post_norm`", "none")?;
    let ok = writer.post_norm.is_some() || writer.outer_norm.is_none();
    at.ensure(ok, "outer_norm", "a `post_norm`", "none")?;
    let ok = writer.post_norm.is_some() || writer.post_norm_key.is_none();
    at.ensure(ok, "post_norm_key", "a `post_norm`", "none")?;
    let ok = writer.experts || writer.experts_per_key.is_none();
    at.ensure(ok, "experts_per_key", "`experts`", "none")?;
    let ok = writer.scale.is_some() || !writer.scale_after_lora;
    at.ensure(ok, "scale_after_lora", "a `scale`", "none")?;
    let (from, until) = (writer.layers.from, writer.layers.until.unwrap_or(u32::MAX));
    let found = format!("{from} and {until}");
    at.ensure(from < until, "layers", "`from` below `until`", &found)?;
    let scale = writer.residual_scale.unwrap_or(1.0);
    let ok = scale.is_finite() && scale != 0.0;
    at.ensure(ok, "residual_scale", "a finite nonzero number", &scale.to_string())?;
    for (field, key) in [
        ("residual_scale_key", &writer.residual_scale_key),
        ("post_norm_key", &writer.post_norm_key),
        ("experts_per_key", &writer.experts_per_key),
    ] {
        let key = key.as_deref().unwrap_or("none");
        at.ensure(only_placeholder(key, "{arch}"), field, "no braces except {arch}", key)?;
    }
    Ok(())
}

/// A file, and the prefix of the fields that are being checked.
struct Place<'a>(&'a str, String);

impl Place<'_> {
    fn ensure(&self, ok: bool, field: &str, expected: &str, found: &str) -> Result<(), PatchError> {
        let bad = PatchError::Field {
            file: self.0.to_string(),
            field: format!("{}{field}", self.1),
            expected: expected.to_string(),
            found: found.to_string(),
        };
        if ok { Ok(()) } else { Err(bad) }
    }

    fn tensor_name(&self, field: &str, name: &str) -> Result<(), PatchError> {
        let plain = name.replace("{i}", "0");
        let ok = plain.len() < 64 && !plain.is_empty() && !plain.contains(char::is_whitespace);
        let ok = ok && only_placeholder(name, "{i}");
        self.ensure(ok, field, "a tensor name with at most one {i}", name)
    }
}

/// Returns whether `text` has at most one `placeholder` and no other braces.
fn only_placeholder(text: &str, placeholder: &str) -> bool {
    !text.replacen(placeholder, "", 1).contains(['{', '}'])
}
