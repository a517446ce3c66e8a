//! The files of a release, and the source of each.

use std::path::PathBuf;

use super::ReleaseError;
use super::quantize::{self, QuantType};
use crate::gguf::{Gguf, ShardName};

/// How a file of the release is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The source with this index, quantized to a type.
    Quantize(usize, &'static QuantType),
    /// The source with this index, as is.
    AsItIs(usize),
}

impl Step {
    /// Returns the index of the source.
    pub fn source(self) -> usize {
        match self {
            Self::Quantize(source, _) | Self::AsItIs(source) => source,
        }
    }
}

/// One file of the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// File name, without directory.
    pub file: String,
    /// Name of the quantization type.
    pub label: String,
    /// How it is made.
    pub step: Step,
}

/// The files of a release, and the source that the edit is searched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasePlan {
    /// Common prefix of the file names, before the type.
    pub name: String,
    /// The files, in the requested order.
    pub files: Vec<PlannedFile>,
    /// Index of the largest source, which the edit is searched on unless one is given.
    pub widest: usize,
}

impl ReleasePlan {
    /// Plans the files: one per type in `types`, quantized from the largest full-precision source, then every other
    /// source as is.
    ///
    /// # Errors
    /// Returns [`ReleaseError::Plan`] if there is no suitable source, a type cannot be made, or names are invalid or
    /// collide.
    pub fn plan(
        sources: &[Gguf],
        types: &[&'static QuantType],
        name: Option<&str>,
        imatrix: bool,
    ) -> Result<Self, ReleaseError> {
        let by_size =
            |numbers: &mut dyn Iterator<Item = usize>| numbers.max_by_key(|&i| sources[i].total_len());
        let no_source = || refuse("expected at least one source, found none".into(), "pass a model file");
        let widest = by_size(&mut (0..sources.len())).ok_or_else(no_source)?;
        let full = by_size(&mut (0..sources.len()).filter(|&i| quantize::is_full_precision(&sources[i])));
        let maker = match (types.is_empty(), full) {
            (true, _) => None,
            (false, Some(full)) => Some(full),
            (false, None) => {
                let problem = "--types needs a full-precision source, found none".to_owned();
                return Err(refuse(problem, "add the F16, BF16 or Q8_0 file, or omit --types"));
            }
        };
        let (prefix, _) = parts(&sources[maker.unwrap_or(0)]);
        let name = name.map_or_else(|| format!("{prefix}-rosi"), str::to_owned);
        if name.is_empty() || name.contains(['/', '\\', '\n']) || name.starts_with('.') {
            return Err(refuse(format!("invalid file name prefix {name:?}"), "set another one with --name"));
        }
        let mut files = Vec::new();
        let mut add = |label: String, step| {
            files.push(PlannedFile { file: format!("{name}-{label}.gguf"), label, step });
        };
        for quant in types.iter().filter(|_| maker.is_some()) {
            let source = maker.unwrap_or(widest);
            quantize::check(&sources[source], quant, imatrix)?;
            add(quant.name.into(), Step::Quantize(source, quant));
        }
        for i in (0..sources.len()).filter(|&i| maker != Some(i)) {
            refuse_split(&sources[i])?;
            add(parts(&sources[i]).1, Step::AsItIs(i));
        }
        refuse_same_names(&files)?;
        Ok(Self { name, files, widest })
    }
}

fn refuse(problem: String, hint: &'static str) -> ReleaseError {
    ReleaseError::Plan { problem, hint }
}

fn refuse_split(gguf: &Gguf) -> Result<(), ReleaseError> {
    if gguf.n_files() == 1 {
        return Ok(());
    }
    let problem = format!("{} is a split model, expected a single file", gguf.path.display());
    Err(refuse(problem, "merge it with llama-gguf-split --merge, or use `rosi-gguf inject`"))
}

fn refuse_same_names(files: &[PlannedFile]) -> Result<(), ReleaseError> {
    for (i, planned) in files.iter().enumerate() {
        if files[..i].iter().any(|other| other.file.eq_ignore_ascii_case(&planned.file)) {
            let problem = format!("two files would have the name {}", planned.file);
            return Err(refuse(problem, "list each type, and each source of a type, only once"));
        }
    }
    Ok(())
}

/// Returns the base name and the type of a model file: from the end of its name, otherwise from its metadata.
fn parts(gguf: &Gguf) -> (String, String) {
    let stem = gguf.path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let end = gguf.split().map(|split| ShardName::ending(split.no, split.count));
    let stem = end
        .and_then(|end| stem.strip_suffix(end.trim_end_matches(".gguf")).map(str::to_owned))
        .unwrap_or(stem);
    if let Some((at, _)) = stem.rmatch_indices(['-', '.']).next() {
        let end = &stem[at + 1..];
        let label =
            QuantType::parse(end).map(|t| t.name).or(end.eq_ignore_ascii_case("F32").then_some("F32"));
        if let Some(label) = label.filter(|_| at > 0) {
            return (stem[..at].to_owned(), label.to_owned());
        }
    }
    let said = QuantType::of_file(gguf).map_or("GGUF", |t| t.name);
    (stem, said.to_owned())
}

/// Returns the paths of the other files that a release writes to `folder`, besides the models.
pub fn side_files(folder: &std::path::Path) -> [PathBuf; 2] {
    [folder.join("README.md"), folder.join("SHA256SUMS")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, GgufBuilder};

    fn model(name: &str, ggml_type: GgmlType, rows: u64) -> Gguf {
        let file = GgufBuilder::new().string("general.architecture", "llama");
        let bytes = ggml_type.row_bytes(32).unwrap() * rows;
        let mut out = Vec::new();
        file.tensor("t", &[32, rows], ggml_type, vec![0; bytes as usize]).write_to(&mut out).unwrap();
        let mut gguf = Gguf::parse(std::io::Cursor::new(&out), out.len() as u64).unwrap();
        gguf.path = name.into();
        gguf
    }

    fn types(names: &[&str]) -> Vec<&'static QuantType> {
        names.iter().map(|name| QuantType::parse(name).unwrap()).collect()
    }

    fn names(plan: &ReleasePlan) -> Vec<&str> {
        plan.files.iter().map(|r| r.file.as_str()).collect()
    }

    #[test]
    fn types_come_from_the_widest_source_and_others_stay_as_they_are() {
        let sources =
            [model("m/Tiny-Q4_0.gguf", GgmlType::Q4_0, 2), model("m/Tiny.F16.gguf", GgmlType::F16, 4)];
        let plan = ReleasePlan::plan(&sources, &types(&["Q8_0", "Q6_K"]), None, false).unwrap();
        assert_eq!(names(&plan), ["Tiny-rosi-Q8_0.gguf", "Tiny-rosi-Q6_K.gguf", "Tiny-rosi-Q4_0.gguf"]);
        assert_eq!((plan.widest, plan.files[2].step), (1, Step::AsItIs(0)));
        let as_they_are = ReleasePlan::plan(&sources, &[], Some("Safe"), false).unwrap();
        assert_eq!(names(&as_they_are), ["Safe-Q4_0.gguf", "Safe-F16.gguf"]);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let error = |sources: &[Gguf], wanted: &[&str], name| {
            ReleasePlan::plan(sources, &types(wanted), name, false).unwrap_err().to_string()
        };
        let quantized = [model("a-Q4_0.gguf", GgmlType::Q4_0, 2)];
        let wide = || model("a-F16.gguf", GgmlType::F16, 2);
        assert!(error(&[], &[], None).contains("found none"));
        assert!(error(&quantized, &["Q8_0"], None).contains("needs a full-precision source"));
        assert!(error(&[wide()], &["IQ1_S"], None).contains("importance matrix"));
        assert!(error(&[wide()], &["Q8_0", "Q8_0"], None).contains("two files would have the name"));
        assert!(error(&[wide()], &["Q8_0"], Some("../x")).contains("invalid file name prefix"));
    }
}
