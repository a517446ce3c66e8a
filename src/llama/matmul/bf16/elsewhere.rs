//! Stands in for the kernel on other architectures, where no product uses it.
#![allow(unsafe_code)]

/// Operands that cannot exist.
pub(super) enum Operands {}

impl Operands {
    pub(super) fn new() -> Option<Self> {
        None
    }

    pub(super) fn set_tokens(&mut self, _x: &[f32], _n_in: usize) {
        match *self {}
    }

    pub(super) fn set_rows(&mut self, _w: &[f32], _n_in: usize) {
        match *self {}
    }

    /// # Safety
    /// None is needed.
    pub(super) unsafe fn product(&self, _sizes: [usize; 3], _y: *mut f32, _stride: usize) {
        match *self {}
    }
}
