//! Helpers shared by the tests.

#![allow(dead_code)] // each test binary uses only some of them

pub mod beside;
pub mod downloaded;
pub mod engine;
pub mod few_prompts;
pub mod ffi;
pub mod files;
pub mod found;
pub mod generated;
pub mod http_server;
pub mod in_place;
pub mod ollama_store;
pub mod oracle;
pub mod plan_only;
pub mod retyped;
pub mod run;
pub mod splitter;
pub mod talking;
pub mod think_aloud;
pub mod tiny_llama;
pub mod write_edited;
