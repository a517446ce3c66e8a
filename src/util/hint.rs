//! Next steps for the user, apart from the error messages that they go with.

/// An error or a warning that may tell what to do about it.
pub trait Hint {
    /// A next step for the user, where there is one.
    fn hint(&self) -> Option<String>;
}
