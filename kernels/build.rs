//! Compiles `cuda/*.cu` with nvcc when the feature `cuda` is on: machine code for sm_80, sm_89 and sm_90a, and PTX for later chips.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Targets of each file. `sm_90a` has Hopper's own instructions; the driver of any later chip compiles the PTX.
const TARGETS: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
];

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=KVSHARE_CUDA_TARGETS");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut names: Vec<PathBuf> = std::fs::read_dir("cuda")
        .expect("the folder of kernels")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    names.sort();
    for source in names {
        let name = source.file_stem().expect("a file has a name");
        compile(&source, &out.join(name).with_extension("fatbin"));
    }
}

/// Compiles a file. `KVSHARE_CUDA_TARGETS`, space-separated `-gencode` values, limits the chips while a kernel is being written.
fn compile(source: &Path, fatbin: &Path) {
    let chosen = env::var("KVSHARE_CUDA_TARGETS").unwrap_or_else(|_| TARGETS.join(" "));
    let mut command = Command::new(nvcc());
    command.args(["-fatbin", "-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo", "-Icuda"]);
    command.args(chosen.split_whitespace().map(|target| format!("-gencode={target}")));
    command.arg(source).arg("-o").arg(fatbin);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc on {}: {status}", source.display()),
        Err(error) => panic!("the feature cuda needs nvcc of CUDA 13 (CUDA_HOME/bin, or in PATH): {error}"),
    }
}

fn nvcc() -> PathBuf {
    env::var_os("CUDA_HOME").map_or_else(|| PathBuf::from("nvcc"), |home| PathBuf::from(home).join("bin/nvcc"))
}
