//! A folder whose `config.json` is what stands before the first zero byte, and whose `model.safetensors` is the rest.
#![no_main]

use runner::WeightFiles;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let folder = tempfile::tempdir().expect("a folder for two files");
    std::fs::write(folder.path().join("config.json"), &data[..cut]).expect("room for a file");
    std::fs::write(folder.path().join("model.safetensors"), data.get(cut + 1..).unwrap_or_default()).expect("room for a file");
    let _answer = runner::check_checkpoint(&WeightFiles::Safetensors(folder.path().to_owned()));
});
