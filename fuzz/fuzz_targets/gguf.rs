//! A GGUF file of any bytes.
#![no_main]

use runner::WeightFiles;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _header = gguf::Header::read(data, data.len() as u64);
    let folder = tempfile::tempdir().expect("a folder for one file");
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, data).expect("room for one file");
    let _answer = runner::check_checkpoint(&WeightFiles::Gguf(path.clone()));
    if let Ok(vocabulary) = runner::read_vocabulary(&path) {
        let _tokenizer = tokenizer::Tokenizer::from_gguf(tokenizer::GgufVocabulary {
            model: vocabulary.model,
            pre: vocabulary.pre,
            tokens: vocabulary.tokens,
            scores: vocabulary.scores,
            token_types: vocabulary.token_types,
            merges: vocabulary.merges,
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            unk: vocabulary.unk,
            ..tokenizer::GgufVocabulary::default()
        });
    }
});
