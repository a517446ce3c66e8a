//! Tests of the program and the library on small files, without a real model.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod cli;
mod edit;
mod eval;
mod hub;
mod layers;
mod ollama;
mod outputs;
mod split;
mod thinking;
mod undo;
mod verify;
