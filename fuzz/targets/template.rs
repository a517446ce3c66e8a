#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rosi_gguf_fuzz::template(bytes));
