//! Next steps for the user, kept separate from the error messages that they accompany.

/// An error or warning that may suggest a next step.
pub trait Hint {
    /// Returns a next step for the user, if there is one.
    fn hint(&self) -> Option<String>;
}
