//! Split models: the names of their files, and reading the files as one model.
//!
//! llama.cpp derives the names of all other files from the name of the first, so a name that does not
//! match `split.no` and `split.count` is rejected here, before llama.cpp fails on it.

use std::path::{Path, PathBuf};

use super::{Gguf, GgufError, Malformed, Split, TensorInfo, Value, reader};

/// The parsed components of a path `FOLDER/NAME-00002-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// `FOLDER`.
    folder: PathBuf,
    /// `NAME`.
    prefix: String,
    /// `gguf` in any letter case, as in the path.
    extension: String,
    /// Index of the file, from 0.
    pub no: u16,
    /// Number of files.
    pub count: u16,
}

impl ShardName {
    /// Parses a path. Returns `None` if the file name does not have this form.
    pub fn parse(path: &Path) -> Option<Self> {
        let (name, extension) = path.file_name()?.to_str()?.rsplit_once('.')?;
        if !extension.eq_ignore_ascii_case("gguf") {
            return None;
        }
        let (rest, count) = name.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let number = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten()
        };
        let (no, count) = (number(no)?.checked_sub(1)?, number(count)?);
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let (prefix, extension) = (prefix.to_owned(), extension.to_owned());
        (no < count && !prefix.is_empty()).then_some(Self { folder, prefix, extension, no, count })
    }

    /// Returns the ending of the name of file `no` (from 0) of `count`.
    pub fn ending(no: u16, count: u16) -> String {
        format!("-{:05}-of-{count:05}.gguf", u32::from(no) + 1)
    }

    /// Returns the path of file `no`.
    pub fn path(&self, no: u16) -> PathBuf {
        let ending = Self::ending(no, self.count);
        self.folder.join(format!("{}{}", self.prefix, ending)).with_extension(&self.extension)
    }
}

/// Returns the path with `suffix` appended to its name: `NAME-rosi.gguf`, or
/// `NAME-rosi-00001-of-00003.gguf` for any file of a split model.
pub fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    if let Some(name) = ShardName::parse(path) {
        let prefix = name.prefix.clone() + suffix;
        return ShardName { prefix, extension: "gguf".into(), ..name }.path(0);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}{suffix}.gguf"))
}

/// Opens the file and, if it belongs to a split model, the other files too.
pub(super) fn open(path: &Path) -> Result<Gguf, GgufError> {
    let given = reader::open(path, 0)?;
    match given.split() {
        None => Ok(given),
        Some(split) => join(read_all(given, split)?),
    }
}

/// Opens all files of the split model that `given` belongs to, in order.
fn read_all(given: Gguf, split: Split) -> Result<Vec<Gguf>, GgufError> {
    let Split { no, count } = split;
    let named = ShardName::parse(&given.path).filter(|name| (name.no, name.count) == (no, count));
    let name = named.ok_or_else(|| GgufError::ShardName {
        path: given.path.clone(),
        no,
        count,
        expected: ShardName::ending(no, count),
    })?;
    refuse_missing(&given.path, &name)?;
    let mut memory = given.memory;
    let mut files = Vec::new();
    let mut given = Some(given);
    for no in 0..count {
        let mut file = match given.take_if(|_| no == name.no) {
            Some(given) => given,
            None => {
                let file = reader::open(&name.path(no), memory)?;
                memory += file.memory;
                file
            }
        };
        let found = file.split();
        if found != Some(Split { no, count }) {
            let tell = |s: Split| format!("file {} of {}", u32::from(s.no) + 1, s.count);
            let found = found.map_or_else(|| "not recorded".into(), tell);
            return Err(foreign(&file, &name, "its position", tell(Split { no, count }), found));
        }
        file.shard = no;
        file.tensors.iter_mut().for_each(|tensor| tensor.shard = no);
        files.push(file);
    }
    check_one_model(&files, &name)?;
    Ok(files)
}

fn refuse_missing(path: &Path, name: &ShardName) -> Result<(), GgufError> {
    let is_there = |&no: &u16| name.path(no).exists();
    let Some(missing) = (0..name.count).find(|no| !is_there(no)) else { return Ok(()) };
    Err(GgufError::MissingShard {
        path: path.to_path_buf(),
        missing: name.path(missing),
        first: missing == 0,
        found: (0..name.count).filter(is_there).count(),
        count: name.count,
    })
}

fn foreign(file: &Gguf, name: &ShardName, what: &'static str, expected: String, found: String) -> GgufError {
    let (path, first) = (file.path.clone(), name.path(0));
    GgufError::ForeignShard { path, first, what, expected: expected.into(), found: found.into() }
}

/// Keys that later files may omit but must not contradict.
const SHARED: [&str; 4] =
    ["split.tensors.count", "general.architecture", "general.name", "general.file_type"];

/// Rejects files whose shared keys contradict the first file, and a total number of tensors that differs
/// from `split.tensors.count`.
fn check_one_model(files: &[Gguf], name: &ShardName) -> Result<(), GgufError> {
    let Some(first) = files.first() else { return Ok(()) };
    for file in files {
        for key in SHARED {
            let (expected, found) = (first.get(key), file.get(key));
            if found.is_some() && expected != found {
                return Err(foreign(file, name, key, tell(expected), tell(found)));
            }
        }
    }
    let n_tensors: usize = files.iter().map(|file| file.tensors.len()).sum();
    match first.get("split.tensors.count") {
        Some(&Value::I32(n)) if usize::try_from(n) == Ok(n_tensors) => Ok(()),
        expected => {
            let counts: Vec<String> = files.iter().map(|file| file.tensors.len().to_string()).collect();
            let found = format!("{n_tensors} ({})", counts.join(" + "));
            let what = "the number of tensors in all files (split.tensors.count)";
            Err(foreign(first, name, what, tell(expected), found))
        }
    }
}

fn tell(value: Option<&Value>) -> String {
    match value {
        None => "no such key".into(),
        Some(Value::String(text)) => format!("{text:?}"),
        Some(Value::I32(n)) => n.to_string(),
        Some(Value::U32(n)) => n.to_string(),
        Some(value) => value.value_type().to_string(),
    }
}

/// Merges the files into the first, which then lists the tensors of all.
fn join(mut files: Vec<Gguf>) -> Result<Gguf, GgufError> {
    let others = files.split_off(1);
    let mut first = files.remove(0);
    let mut tensors = Vec::with_capacity(first.n_own + others.iter().map(|f| f.n_own).sum::<usize>());
    tensors.append(&mut first.tensors);
    tensors.extend(others.iter().flat_map(|file| &file.tensors).cloned());
    first.by_name = reader::index_by_name(&tensors).map_err(|problem| {
        let path = match &problem {
            Malformed::DuplicateTensor { tensor } => file_with_second(&tensors, tensor, &others),
            _ => None,
        };
        GgufError::Malformed { path: path.unwrap_or(first.path.clone()), problem: Box::new(problem) }
    })?;
    Ok(Gguf { tensors, others, ..first })
}

/// Returns the file that contains the second occurrence of a tensor's name.
fn file_with_second(tensors: &[TensorInfo], name: &str, others: &[Gguf]) -> Option<PathBuf> {
    let shard = tensors.iter().filter(|tensor| tensor.name == name).nth(1)?.shard;
    others.iter().find(|file| file.shard == shard).map(|file| file.path.clone())
}
