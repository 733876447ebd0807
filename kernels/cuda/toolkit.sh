#!/usr/bin/env bash
# The compiler of CUDA 13 from Python wheels: all that `cargo build --features cuda` needs on a machine without a GPU or a toolkit.
# What is built with it runs where a driver and cuBLAS of CUDA 13 are.
# usage: eval "$(kernels/cuda/toolkit.sh [DIR])"     # DIR: target/cuda-toolkit by default; prints the line that sets CUDA_HOME
set -euo pipefail

packages=('nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*')
dir=${1:-$(dirname "${BASH_SOURCE[0]}")/../../target/cuda-toolkit}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# The list of packages is written last: a folder with another list, or none, is made anew.
if [[ $(cat "$dir/packages" 2>/dev/null) != "${packages[*]}" ]]; then
  rm -rf "$dir/venv"
  python3 -m venv "$dir/venv" >&2
  "$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
  echo "${packages[*]}" >"$dir/packages"
fi
for home in "$dir"/venv/lib/python3*/site-packages/nvidia/cu13; do
  "$home/bin/nvcc" --version >&2
  printf 'export CUDA_HOME=%q\n' "$home"
done
