#!/usr/bin/env python3
"""Tokens and log probabilities of fixed prompts: writes them, or compares them with those of an earlier build, bit by bit.

usage: golden.py --kvshare BINARY --model MODEL (--write | --check) FILE.json [--args "FLAGS OF serve"]

A change that claims to change no behaviour gives the same file. Figures are compared as the server prints them, which is exactly. They
are those of one instruction set: rows of a matrix are summed in another order with other vectors, so a file names the CPU flags it was made with.
Each prompt is asked four times: computed, over moved spans of an earlier prompt, computed into the prefix cache, and as a hit there.
"""

import argparse
import json
import pathlib
import shlex
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "quality"))
from daemon import daemon  # noqa: E402

DOCUMENTS = [(pathlib.Path(__file__).parents[2] / f"crates/cli/src/demo/{name}.txt").read_text().strip() for name in ("lighthouse", "bakery", "trail")]
QUESTIONS = [
    "Name three rivers of Europe.",
    "Write a function in Rust that reverses a string.",
    "Ein kurzes Gedicht über den Herbst, bitte.",
    "请用一句话介绍长城。",
    "\n\n".join(DOCUMENTS) + "\n\nIn which year was the lighthouse lit for the first time?",
    "\n\n".join([DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]]) + "\n\nWhat is the name of the founder of the bakery?",
]
# Spans come before the prompt itself is in the prefix cache, and the last one finds it there.
MODES = ("off", "span", "prefix", "prefix")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--args", default="", help="further flags of serve")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=pathlib.Path)
    what.add_argument("--check", type=pathlib.Path)
    args = parser.parse_args()
    cpu = vectors()
    expected = json.loads(args.check.read_text()) if args.check else None
    if expected and expected["cpu"] != cpu:
        raise SystemExit(f"{args.check} was made with {expected['cpu']}, this CPU has {cpu}: write a file with the earlier build on this machine")
    flags = ["--verify-share", "0", "--heal", "false", "--min-saved", "0ms", *shlex.split(args.args)]
    with daemon(args.kvshare, args.model, "prefix", flags) as url:
        answers = [ask(url, question, mode) for question in QUESTIONS for mode in MODES]
    if args.write:
        args.write.write_text(json.dumps({"cpu": cpu, "answers": answers}, ensure_ascii=False, indent=0) + "\n")
        return
    differing = [i for i, (a, b) in enumerate(zip(expected["answers"], answers)) if a != b]
    for i in differing:
        print(f"question {i // len(MODES)} in mode {MODES[i % len(MODES)]}: {expected['answers'][i]['text']!r} is now {answers[i]['text']!r}")
    print(f"{len(answers) - len(differing)} of {len(answers)} answers are equal in every token and log probability")
    sys.exit(bool(differing))


def ask(url, question, mode):
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24, "logprobs": True,
            "top_logprobs": 5, "kv_sharing": {"mode": mode}, "cache_salt": "off" if mode == "off" else "shared"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    choice = json.load(urllib.request.urlopen(request, timeout=600))["choices"][0]
    tokens = [[entry["token"], entry["logprob"], *(top["logprob"] for top in entry["top_logprobs"])] for entry in choice["logprobs"]["content"]]
    return {"text": choice["message"]["content"], "tokens": tokens}


def vectors():
    """The instruction set that the kernels choose here, as `kernels::Isa::detect` does."""
    flags = next((line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split()
    if not {"avx2", "fma", "f16c"} <= set(flags):
        return "portable"
    return "avx512" if {"avx512f", "avx512bw"} <= set(flags) else "avx2"


if __name__ == "__main__":
    main()
