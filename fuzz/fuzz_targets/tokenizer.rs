//! A folder whose `tokenizer.json` is what stands before the first zero byte, and whose `tokenizer_config.json` is the rest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let folder = tempfile::tempdir().expect("a folder for two files");
    std::fs::write(folder.path().join("tokenizer.json"), &data[..cut]).expect("room for a file");
    std::fs::write(folder.path().join("tokenizer_config.json"), data.get(cut + 1..).unwrap_or_default()).expect("room for a file");
    if let Ok(tokenizer) = tokenizer::Tokenizer::from_folder(folder.path()) {
        let _prompt = tokenizer.encode("Hello <s> wörld\n\n 123", true);
    }
});
