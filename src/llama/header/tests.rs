use super::*;
use crate::gguf::GgufBuilder;

fn check_built(builder: &GgufBuilder) -> Result<(), HeaderError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    builder.write_to(&mut std::fs::File::create(&path).unwrap()).unwrap();
    check(&Gguf::open(&path).unwrap())
}

#[test]
fn only_what_ggml_multiplies_may_be_a_matrix() {
    let of_type = |name: &str, ne: &[u64], ggml_type: GgmlType| {
        let bytes = ggml_type.row_bytes(ne[0]).unwrap() * ne[1..].iter().product::<u64>();
        check_built(&GgufBuilder::new().tensor(name, ne, ggml_type, vec![0; bytes as usize]))
    };
    let refused: Vec<&str> = GgmlType::all()
        .filter(|&ggml_type| match of_type("blk.0.attn_output.weight", &[256, 2], ggml_type) {
            Ok(()) => false,
            Err(HeaderError::NoProduct { tensor, found, expected, .. }) => {
                assert_eq!((tensor.as_str(), found), ("blk.0.attn_output.weight", ggml_type));
                !expected.contains(&ggml_type.name())
            }
            Err(error) => panic!("{error}"),
        })
        .map(GgmlType::name)
        .collect();
    assert_eq!(refused, ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]);
    // Vectors are not multiplied, and expert tables are only looked up.
    assert!(of_type("d2t", &[256, 1], GgmlType::I64).is_ok());
    assert!(of_type("blk.0.ffn_gate_tid2eid.weight", &[6, 9], GgmlType::I32).is_ok());
}

#[test]
fn a_token_that_is_there_twice_is_named() {
    let tokens = |tokens: &[&str]| check_built(&GgufBuilder::new().string_array(TOKENS, tokens));
    let error = tokens(&["a", "[PAD]", "b", "[PAD]"]).unwrap_err();
    assert!(
        matches!(&error, HeaderError::TokenTwice { token, first: 1, second: 3, .. } if token == "[PAD]"),
        "{error}"
    );
    assert!(matches!(tokens(&["a\0b", "a"]), Err(HeaderError::TokenTwice { .. })));
    assert!(matches!(tokens(&["", "[EMPTY_0]"]), Err(HeaderError::TokenTwice { .. })));
    // llama.cpp gives each empty token a name of its own.
    assert!(tokens(&["", "", "a", "A"]).is_ok());
}

#[test]
fn a_vocabulary_of_kind_llama_spells_every_byte() {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let with = |model: &str, left_out: &[&str], more: &[&str]| {
        let all = bytes.iter().map(String::as_str).filter(|byte| !left_out.contains(byte));
        let tokens: Vec<&str> = all.chain(more.iter().copied()).collect();
        check_built(&GgufBuilder::new().string("tokenizer.ggml.model", model).string_array(TOKENS, &tokens))
    };
    assert!(with("llama", &["<0x00>", "<0xC0>", "<0xFF>"], &[]).is_ok());
    assert!(with("llama", &["<0x41>"], &["A"]).is_ok());
    let error = with("llama", &["<0x41>", "<0xE2>"], &[]).unwrap_err();
    assert!(matches!(error, HeaderError::NoByte { missing: 0x41, n_missing: 2, .. }), "{error}");
    assert!(with("gpt2", &["<0x41>"], &[]).is_ok());
}

#[test]
fn tensors_begin_where_they_can_be_mapped() {
    let aligned = |alignment: u32, padding: &str| {
        let builder = GgufBuilder::new().alignment(alignment).string("x", padding);
        check_built(&builder.f32_tensor("output_norm.weight", &[8], &[0.0; 8]))
    };
    let found: Vec<bool> = (0..32).map(|n| aligned(8, &"x".repeat(n)).is_ok()).collect();
    // Of every four offsets that an alignment of 8 allows, one is a multiple of 32.
    assert_eq!(found.iter().filter(|ok| **ok).count(), 8);
    let error = (0..32).find_map(|n| aligned(8, &"x".repeat(n)).err()).unwrap();
    assert!(error.to_string().contains("general.alignment is 8"), "{error}");
    assert!(aligned(32, "").is_ok() && aligned(64, "x").is_ok());
}

#[test]
fn a_vocabulary_of_kind_rwkv_has_every_byte_alone() {
    let bytes: Vec<String> = (0..=255u8)
        .map(|byte| match byte {
            b'\n' => "\\n".into(),
            b'\\' => "\\\\".into(),
            b'\'' => "\\'".into(),
            b' '..=b'~' => char::from(byte).to_string(),
            byte => format!("\\x{byte:02x}"),
        })
        .collect();
    let with = |left_out: &str, more: &[&str]| {
        let all = bytes.iter().map(String::as_str).filter(|byte| *byte != left_out);
        let tokens: Vec<&str> = ["<s>"].into_iter().chain(all).chain(more.iter().copied()).collect();
        check_built(&GgufBuilder::new().string("tokenizer.ggml.model", "rwkv").string_array(TOKENS, &tokens))
    };
    assert!(with("", &["hello"]).is_ok());
    let error = with("h", &["hzz"]).unwrap_err();
    assert!(matches!(error, HeaderError::NoSingleByte { missing: b'h', .. }), "{error}");
    assert!(matches!(with("\\xe2", &[]), Err(HeaderError::NoSingleByte { missing: 0xe2, .. })));
}

#[test]
fn a_model_without_a_vocabulary_is_refused() {
    for kind in ["none", "no_vocab"] {
        let error = check_built(&GgufBuilder::new().string("tokenizer.ggml.model", kind)).unwrap_err();
        assert!(error.to_string().contains("expected a vocabulary"), "{error}");
    }
}
