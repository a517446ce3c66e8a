//! One value for each kind of prompt.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use super::prompts::PromptKind;
use crate::util::spread::spread;

/// One value for each kind of prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerKind<T> {
    /// For harmful prompts, which should be refused.
    pub harmful: T,
    /// For harmless prompts, which should be answered.
    pub harmless: T,
    /// For borderline prompts, which sound harmful but should be answered.
    pub borderline: T,
}

impl<T: Copy> PerKind<T> {
    /// Returns the same value for every kind.
    pub const fn uniform(value: T) -> Self {
        Self { harmful: value, harmless: value, borderline: value }
    }
}

impl<T> PerKind<T> {
    /// Calls `of` for every kind, in the order of [`PromptKind::ALL`].
    pub fn from_fn(of: impl FnMut(PromptKind) -> T) -> Self {
        let [harmful, harmless, borderline] = PromptKind::ALL.map(of);
        Self { harmful, harmless, borderline }
    }

    /// Calls `of` for every kind, in the order of [`PromptKind::ALL`], and stops at the first error.
    ///
    /// # Errors
    /// Returns the error of `of`.
    pub fn try_from_fn<E>(mut of: impl FnMut(PromptKind) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            harmful: of(PromptKind::Harmful)?,
            harmless: of(PromptKind::Harmless)?,
            borderline: of(PromptKind::Borderline)?,
        })
    }

    /// Applies `f` to every value.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerKind<U> {
        PerKind { harmful: f(self.harmful), harmless: f(self.harmless), borderline: f(self.borderline) }
    }

    /// Borrows the values.
    pub fn as_ref(&self) -> PerKind<&T> {
        PerKind { harmful: &self.harmful, harmless: &self.harmless, borderline: &self.borderline }
    }

    /// Returns the values in the order of [`PromptKind::ALL`].
    pub fn values(&self) -> [&T; 3] {
        [&self.harmful, &self.harmless, &self.borderline]
    }

    /// Iterates over the kinds and their values, in the order of [`PromptKind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (PromptKind, &T)> {
        PromptKind::ALL.into_iter().zip(self.values())
    }
}

impl<T: Clone> PerKind<Vec<T>> {
    /// Selects at most `limits` items of each kind, evenly spread.
    pub fn part(&self, limits: PerKind<usize>) -> Self {
        Self::from_fn(|kind| spread(&self[kind], limits[kind]))
    }
}

impl<T> Index<PromptKind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: PromptKind) -> &T {
        match kind {
            PromptKind::Harmful => &self.harmful,
            PromptKind::Harmless => &self.harmless,
            PromptKind::Borderline => &self.borderline,
        }
    }
}

impl<T> IndexMut<PromptKind> for PerKind<T> {
    fn index_mut(&mut self, kind: PromptKind) -> &mut T {
        match kind {
            PromptKind::Harmful => &mut self.harmful,
            PromptKind::Harmless => &mut self.harmless,
            PromptKind::Borderline => &mut self.borderline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_belong_to_their_kinds() {
        let mut lengths = PerKind::from_fn(|kind| kind.as_str().len());
        assert_eq!(lengths, PerKind { harmful: 7, harmless: 8, borderline: 10 });
        lengths[PromptKind::Harmless] += 1;
        assert_eq!((lengths.harmless, lengths.map(|n| n * 2)[PromptKind::Harmless]), (9, 18));
        assert!(lengths.iter().all(|(kind, &n)| lengths[kind] == n));
        assert_eq!(
            PerKind::try_from_fn(|kind| if kind == PromptKind::Harmless { Err(kind) } else { Ok(()) }),
            Err(PromptKind::Harmless)
        );
        let json = serde_json::to_string(&PerKind::uniform(1)).unwrap();
        assert_eq!(json, r#"{"harmful":1,"harmless":1,"borderline":1}"#);
    }
}
