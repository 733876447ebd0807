//! Broken and hostile checkpoints: each gives one short error line, before anything large is allocated.

use std::path::Path;

use runner::{LoadError, WeightFiles, check_checkpoint};

const LAYERS: usize = 2;
const WIDTH: u64 = 16;

/// Builder of a GGUF file.
#[derive(Default)]
struct GgufWriter {
    entries: Vec<u8>,
    num_entries: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data_len: u64,
}

impl GgufWriter {
    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn entry(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        self.entries.extend([&Self::string(key)[..], &ty.to_le_bytes(), value].concat());
        self.num_entries += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &Self::string(value))
    }

    fn size(self, key: &str, value: u64) -> Self {
        self.entry(key, 10, &value.to_le_bytes())
    }

    fn float(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, shape: &[u64]) -> Self {
        self.tensors.extend(Self::string(name));
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(0u32.to_le_bytes());
        self.tensors.extend(self.data_len.to_le_bytes());
        self.data_len += (shape.iter().product::<u64>() * 4).next_multiple_of(32);
        self.num_tensors += 1;
        self
    }

    fn finish(self) -> Vec<u8> {
        let counts = [self.num_tensors.to_le_bytes(), self.num_entries.to_le_bytes()].concat();
        let mut bytes = [b"GGUF\x03\0\0\0", &counts[..], &self.entries, &self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(32) + self.data_len as usize, 0);
        bytes
    }
}

/// Builds metadata of a small Llama; `change` may add to it, or set entries first, which take precedence.
fn llama(change: impl Fn(GgufWriter) -> GgufWriter) -> GgufWriter {
    let tokens = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &GgufWriter::string("a"), &GgufWriter::string("b")].concat();
    change(GgufWriter::default().text("general.architecture", "llama"))
        .size("llama.block_count", LAYERS as u64)
        .size("llama.embedding_length", WIDTH)
        .size("llama.feed_forward_length", WIDTH)
        .size("llama.attention.head_count", 2)
        .size("llama.context_length", 128)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .float("llama.rope.freq_base", 10000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .entry("tokenizer.ggml.tokens", 9, &tokens)
}

fn with_tensors(writer: GgufWriter) -> GgufWriter {
    with_tensors_after_first(writer.tensor("token_embd.weight", &[2, WIDTH]))
}

fn with_tensors_after_first(writer: GgufWriter) -> GgufWriter {
    let mut writer = writer.tensor("output_norm.weight", &[WIDTH]);
    for layer in 0..LAYERS {
        for name in ["attn_norm", "ffn_norm"] {
            writer = writer.tensor(&format!("blk.{layer}.{name}.weight"), &[WIDTH]);
        }
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            writer = writer.tensor(&format!("blk.{layer}.{name}.weight"), &[WIDTH, WIDTH]);
        }
    }
    writer
}

fn small_gguf() -> Vec<u8> {
    with_tensors(llama(|writer| writer)).finish()
}

fn check_gguf(bytes: &[u8]) -> Result<(), LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    check_checkpoint(&WeightFiles::Gguf(path))
}

#[track_caller]
fn assert_short(error: &LoadError) {
    let message = error.to_string();
    assert!(message.len() < 600 && !message.contains('\n'), "{message}");
}

#[track_caller]
fn check_refused(bytes: &[u8], named: &str) {
    let error = check_gguf(bytes).expect_err(named);
    assert_short(&error);
    assert!(error.to_string().contains(named), "{error}");
}

/// Builds the small model with every `from` in the header replaced.
fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
    let bytes = small_gguf();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

/// Returns a header with the entry of a size changed to another value.
fn with_size(key: &str, old: u64, new: u64) -> Vec<u8> {
    let entry = |value: u64| [key.as_bytes(), &10u32.to_le_bytes(), &value.to_le_bytes()].concat();
    replaced(&entry(old), &entry(new))
}

fn with_float(key: &str, old: f32, new: f32) -> Vec<u8> {
    let entry = |value: f32| [key.as_bytes(), &6u32.to_le_bytes(), &value.to_le_bytes()].concat();
    replaced(&entry(old), &entry(new))
}

#[test]
fn the_small_model_is_accepted() {
    check_gguf(&small_gguf()).unwrap();
}

#[test]
fn constants_that_cannot_be_meant_are_refused() {
    check_refused(&with_tensors(llama(|writer| writer.entry("general.alignment", 4, &[0; 4]))).finish(), "general.alignment");
    check_refused(&with_size("block_count", 2, 1 << 62), "layers");
    check_refused(&with_size("block_count", 2, 0), "layers");
    check_refused(&with_size("block_count", 2, 3), "blk.2.");
    check_refused(&with_size("embedding_length", WIDTH, u64::MAX), "hidden size");
    check_refused(&with_size("head_count", 2, 0), "query heads");
    check_refused(&with_size("context_length", 128, u64::MAX), "positions");
    check_refused(&with_float("epsilon", 1e-5, f32::NAN), "epsilon");
    check_refused(&with_float("epsilon", 1e-5, 0.0), "epsilon");
    check_refused(&with_float("freq_base", 10000.0, 0.0), "base of the rotary");
    check_refused(&with_float("freq_base", 10000.0, f32::INFINITY), "base of the rotary");
    let scaled = |factor| with_tensors(llama(|writer| writer.float("llama.rope.scale_linear", factor))).finish();
    check_refused(&scaled(f32::NAN), "frequency");
    check_refused(&scaled(-1.0), "frequency");
    check_gguf(&scaled(4.0)).unwrap();
}

#[test]
fn shapes_whose_product_leaves_64_bits_are_refused() {
    check_refused(&llama(|writer| writer).tensor("token_embd.weight", &[2, WIDTH]).finish(), "output_norm");
    let dims = [WIDTH.to_le_bytes(), 2u64.to_le_bytes()].concat();
    let huge = [(1u64 << 32).to_le_bytes(), (1u64 << 33).to_le_bytes()].concat();
    check_refused(&replaced(&dims, &huge), "shape");
    let large = [(1u64 << 32).to_le_bytes(), (1u64 << 30).to_le_bytes()].concat();
    check_refused(&replaced(&dims, &large), "token_embd");
}

#[test]
fn a_part_of_a_split_model_is_named_as_one() {
    let part = |number: u64, writer: GgufWriter| writer.size("split.no", number).size("split.count", 2);
    let folder = tempfile::tempdir().unwrap();
    let path = |number: u32| folder.path().join(format!("m-0000{number}-of-00002.gguf"));
    let check = |path: &Path| check_checkpoint(&WeightFiles::Gguf(path.to_owned()));
    let first = llama(|writer| part(0, writer)).tensor("token_embd.weight", &[2, WIDTH]);
    std::fs::write(path(1), first.finish()).unwrap();
    let missing = check(&path(1)).unwrap_err().to_string();
    assert!(missing.contains("one of 2 parts") && missing.contains("m-00002-of-00002.gguf is missing"), "{missing}");
    let second = with_tensors_after_first(part(1, GgufWriter::default().text("general.architecture", "llama")));
    std::fs::write(path(2), second.finish()).unwrap();
    check(&path(1)).unwrap();
    let later = check(&path(2)).unwrap_err().to_string();
    assert!(later.contains("part 2 of 2") && later.contains("m-00001-of-00002.gguf"), "{later}");
}

/// Checks files with randomly changed bytes (seeded): a result or a short error, never a panic.
#[test]
fn changed_gguf_files_are_answered() {
    let whole = small_gguf();
    let header_len = whole.len() - with_tensors(GgufWriter::default()).data_len as usize;
    let mut state = 3u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut num_refused = 0;
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + next() % 3 {
            let at = next() % header_len;
            match next() % 4 {
                0 => bytes[at] = next() as u8,
                1 => bytes[at] ^= 1 << (next() % 8),
                2 => bytes[at..(at + 8).min(header_len)].fill(0xff),
                _ => bytes.truncate(header_len.max(at)),
            }
        }
        if let Err(error) = check_gguf(&bytes) {
            assert_short(&error);
            num_refused += 1;
        }
    }
    assert!(num_refused > 1000, "{num_refused}");
}

/// Checks the same for `config.json` and the header of a safetensors file.
#[test]
fn changed_folders_are_answered() {
    let config = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":2,"intermediate_size":2,"num_hidden_layers":1,
        "num_attention_heads":1,"vocab_size":2,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_scaling":{"rope_type":"linear","factor":2.0}}"#;
    let header = r#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat();
    let pieces = ["0", "-1", "1e999", "18446744073709551615", "null", "\"\"", "[]", "{", "}", "9", "\u{0}", "NaN"];
    let folder = tempfile::tempdir().unwrap();
    let mut state = 11u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for _ in 0..1500 {
        let (mut config, mut weights) = (config.to_owned(), weights.clone());
        let at = next() % config.len();
        let end = (at + next() % 12).min(config.len());
        config.replace_range(at..end, pieces[next() % pieces.len()]);
        let at = next() % weights.len();
        weights[at] = next() as u8;
        std::fs::write(folder.path().join("config.json"), &config).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), &weights).unwrap();
        if let Err(error) = check_checkpoint(&WeightFiles::Safetensors(folder.path().to_owned())) {
            assert_short(&error);
        }
    }
}
