#!/usr/bin/env python3
"""Prefill and decode speed of kvshare beside llama.cpp, on the same files and threads in one run.

usage: compare_llamacpp.py [--kvshare target/release/kvshare] [--json FILE] [--markdown FILE] MODEL.gguf [MODEL.gguf ...]

Both engines take turns, one process at a time, for --rounds rounds; each number is the median over all samples of all rounds.
Prefill is a fresh prompt in batches of at most 512 tokens, decode is one sequence after such a prompt. llama.cpp runs through
llama-cpp-python (low-level calls, library defaults, no sampling); it is built from source for this machine in a virtual environment of
its own, which is thrown away at the end unless --venv names one to keep or reuse.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv

LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"
BATCH = 512
ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    args = parse_arguments()
    if args.worker:
        print(json.dumps(llama_samples(args)))
        return
    engines = {"llama.cpp": run_llama} if args.llama_only else {"kvshare": run_kvshare, "llama.cpp": run_llama}
    with environment(args.venv) as python:
        facts = machine(args)
        if facts["load_before"] > 0.5:
            log("warning: the machine is busy. llama.cpp's threads spin while they wait, so it loses more than its share: do not keep this table")
        models = [compare(args, engines, python, model) for model in args.models]
    result = {"machine": facts, "models": models}
    table = markdown(args, result)
    print(table, end="")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(table)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    parser.add_argument("--kvshare", type=pathlib.Path, default=ROOT / "target/release/kvshare")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=[512, 2048])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="how often the engines take turns")
    parser.add_argument("--samples", type=int, default=3, help="samples of llama.cpp in one round")
    parser.add_argument("--venv", type=pathlib.Path, help="virtual environment to keep: reused if it has llama-cpp-python")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--llama-only", action="store_true", help="leave kvshare out")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


@contextlib.contextmanager
def environment(kept):
    """A Python that can import llama_cpp."""
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = kept or pathlib.Path(thrown_away)
        python = folder / "bin/python"
        if not (python.exists() and subprocess.run([python, "-c", "import llama_cpp"], stderr=subprocess.DEVNULL).returncode == 0):
            log(f"building {LLAMA_CPP_PYTHON} in {folder}: some minutes")
            venv.create(folder, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "cmake", "ninja"], check=True)
            path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
            build = {**os.environ, "PATH": path, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
            source = ["--no-binary", "llama-cpp-python", LLAMA_CPP_PYTHON]
            subprocess.run([python, "-m", "pip", "install", "-q", *source], check=True, env=build)
        yield python


def compare(args, engines, python, model):
    """Medians of every engine on `model`: {engine: {"prefill": {length: tokens/s}, "decode": {..}}}."""
    samples = {name: {kind: {n: [] for n in args.lengths} for kind in ("prefill", "decode")} for name in engines}
    for turn in range(args.rounds):
        for name, run in engines.items():
            log(f"{model.name}: round {turn + 1} of {args.rounds}, {name}, load {os.getloadavg()[0]:.1f}")
            for kind, by_length in run(args, python, model).items():
                for length, values in by_length.items():
                    samples[name][kind][int(length)] += values
    medians = {
        name: {kind: {n: statistics.median(values) for n, values in by_length.items()} for kind, by_length in kinds.items()}
        for name, kinds in samples.items()
    }
    return {"model": model.name, "tokens_per_s": medians, "samples": samples}


def run_kvshare(args, _python, model):
    """One process of `kvshare bench engine`; it reports medians of its own, each of which counts as one sample."""
    lengths = ",".join(map(str, args.lengths))
    command = [args.kvshare, "bench", "engine", "--model", model, "--lengths", lengths, "--threads", str(args.threads)]
    command += ["--decode-tokens", str(args.decode_tokens), "--donors", "0", "--json", "-"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    of_lengths = lambda key: {str(row["prompt_tokens"]): [row[key]] for row in report["lengths"]}
    return {kind: of_lengths(f"{kind}_tokens_per_s") for kind in ("prefill", "decode")}


def run_llama(args, python, model):
    """One process of `llama_samples`."""
    command = [python, __file__, "--worker", "--lengths", ",".join(map(str, args.lengths)), "--threads", str(args.threads)]
    command += ["--decode-tokens", str(args.decode_tokens), "--samples", str(args.samples), model]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def llama_samples(args):
    """Times llama.cpp in this process: {"prefill": {length: [tokens/s]}, "decode": {length: [tokens/s]}}."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(args.models[0]).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(args.lengths) + args.decode_tokens
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    ids = random.Random(0).choices(range(100, vocab_size // 2), k=params.n_ctx)

    def decode(tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")

    def timed(batches, num_tokens):
        start = time.perf_counter()
        for batch in batches:
            decode(batch)
        llama_cpp.llama_synchronize(context)
        return num_tokens / (time.perf_counter() - start)

    result = {"prefill": {n: [] for n in args.lengths}, "decode": {n: [] for n in args.lengths}}
    for sample in range(args.samples + 1):
        for length in args.lengths:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            prefill = timed([ids[i : min(i + BATCH, length)] for i in range(0, length, BATCH)], length)
            following = timed([[token] for token in ids[length : length + args.decode_tokens]], args.decode_tokens)
            if sample > 0:  # The first touches memory for the first time.
                result["prefill"][length].append(prefill)
                result["decode"][length].append(following)
    return result


def machine(args):
    """What the numbers depend on, read before anything runs: the load is that of others."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": args.threads,
        "rounds": args.rounds,
        "llama.cpp": LLAMA_CPP_PYTHON,
    }


def markdown(args, result):
    """The table, one row a model, kind and length."""
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["machine"].items() if value is not None)
    lines = [facts, "", "| model | | prompt | kvshare tokens/s | llama.cpp tokens/s | ratio |", "|---|---|--:|--:|--:|--:|"]
    for entry in result["models"]:
        speeds = entry["tokens_per_s"]
        for kind in ("prefill", "decode"):
            for length in args.lengths:
                theirs = speeds["llama.cpp"][kind][length]
                ours = speeds.get("kvshare", {}).get(kind, {}).get(length)
                columns = (f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}") if ours else ("-", f"{theirs:.1f}", "-")
                lines.append(f"| {entry['model']} | {kind} | {length} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def log(line):
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
