#!/usr/bin/env python3
"""Scoring prompts, nucleus sampling and spans of small models on a GPU, for two builds side by side.

usage: gpu.py --model LARGE=DIR --model SMALL=DIR --tokenizer FILE NAME=KVSHARE [NAME=KVSHARE ...] [--markdown FILE] [--json FILE]

DIR holds a config.json: weights are random, which no time depends on. FILE lends a vocabulary (a tokenizer.json, or a GGUF). Each build serves
each model in turn; all requests are token ids, so that no tokenizer is measured. Tables:

- scoring: a prompt with `echo` and 5 `logprobs` beside the same without, and the longest gap between two tokens of another stream meanwhile
- sampling: tokens/s of many streams by how they are sampled, relative to greedy. Random weights give flat rows, so temperatures stand for shapes
- spans: time to first token of prompts whose pieces stood in an earlier prompt, in mode `span` with --min-saved 0 beside `prefix`; and of
  prompts that share nothing
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

VOCABULARY = 150_000


def main():
    args = parse_arguments()
    result = {}
    for name, binary in args.builds:
        for model, folder in args.models:
            with server(args, binary, folder) as port:
                print(f"{name}, {model}", file=sys.stderr)
                measured = {}
                for table in args.tables:
                    measured[table] = TABLES[table](args, port)
                    print(f"  {table}: {json.dumps(measured[table])}", file=sys.stderr)
                result.setdefault(model, {})[name] = measured
    text = markdown(args, result)
    print(text, end="")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(text)


def parse_arguments():
    def pair(text):
        name, _, value = text.partition("=")
        return name, pathlib.Path(value).resolve()

    def numbers(text):
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("builds", nargs="+", type=pair, metavar="NAME=KVSHARE")
    parser.add_argument("--model", dest="models", action="append", required=True, type=pair, metavar="NAME=DIR")
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tables", type=lambda text: text.split(","), default=list(TABLES))
    parser.add_argument("--scored-tokens", type=numbers, default=[2048, 8000])
    parser.add_argument("--span-tokens", type=numbers, default=[1024, 2048, 4096, 8000])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--stream-tokens", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--span-repeats", type=int, default=25)
    parser.add_argument("--serve-args", type=lambda text: text.split(), default=[])
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


@contextlib.contextmanager
def server(args, binary, folder):
    """A daemon of random weights; ends with the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [binary, "serve", "--device", args.device, "--port", str(port), "--model", folder, "--load-format", "dummy"]
    command += ["--tokenizer", args.tokenizer, "--max-model-len", "16384", "--min-saved", "0ms", "--verify-share", "0"]
    process = subprocess.Popen([str(part) for part in command + args.serve_args], stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_ready(process, port):
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the server ended with {process.returncode}")


def complete(port, tokens, max_tokens=1, **more):
    """Answer of `/v1/completions` as it came, and the seconds it took. Not parsed here: that would hold up the threads that time streams."""
    body = json.dumps({"model": MODEL_OF[port], "prompt": tokens, "max_tokens": max_tokens, "temperature": 0, **more})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    seconds = time.perf_counter() - started
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {text[:500]}")
    return text, seconds


class Models(dict):
    """The model that a port serves."""

    def __missing__(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v1/models")
        self[port] = json.loads(connection.getresponse().read())["data"][0]["id"]
        return self[port]


MODEL_OF = Models()


def text_of(num_tokens, seed=None):
    return random.Random(seed).choices(range(1000, VOCABULARY), k=num_tokens)


def measure_scoring(args, port):
    return [scoring_of(args, port, num_tokens) for num_tokens in args.scored_tokens]


SCORED = {"echo": True, "logprobs": 5}


def scoring_of(args, port, num_tokens):
    kinds = {"plain": {}, "scored": SCORED}
    times, gaps = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    slowest = max(complete(port, text_of(num_tokens), **more)[1] for more in kinds.values())
    # A build that scores row by row takes seconds; one measurement of that is enough.
    repeats = args.repeats if slowest < 1 else 1
    for _ in range(repeats):
        for kind, more in kinds.items():
            times[kind].append(complete(port, text_of(num_tokens), **more)[1] * 1e3)
    stream = Stream(port)
    for _ in range(repeats):
        for kind, more in kinds.items():
            stream.settle()
            since = time.perf_counter()
            complete(port, text_of(num_tokens), **more)
            stream.settle()
            gaps[kind].append(stream.worst_gap(since) * 1e3)
    stream.stop()
    row = {"tokens": num_tokens}
    for kind in kinds:
        row |= {f"{kind}_ms": statistics.median(times[kind]), f"gap_{kind}_ms": statistics.median(gaps[kind])}
    return row


class Stream:
    """Another client's stream, whose tokens are timed."""

    def __init__(self, port):
        self.arrivals = []
        self.port, self.stopped = port, False
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        self.settle()

    def read(self):
        body = {"model": MODEL_OF[self.port], "prompt": text_of(64), "max_tokens": 12_000, "min_tokens": 12_000, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        while not self.stopped:
            if response.readline().startswith(b"data: {"):
                self.arrivals.append(time.perf_counter())
        connection.close()

    def settle(self):
        """Waits for some tokens more."""
        target = len(self.arrivals) + 20
        while len(self.arrivals) < target and self.thread.is_alive():
            time.sleep(0.002)

    def worst_gap(self, since):
        arrivals = list(self.arrivals)
        first = next(i for i, at in enumerate(arrivals) if at >= since)
        return max(b - a for a, b in zip(arrivals[max(first - 1, 0):], arrivals[max(first, 1):]))

    def stop(self):
        self.stopped = True
        self.thread.join()


SAMPLINGS = {
    "greedy": {},
    "temperature 1": {"temperature": 1},
    "top_p .9, temperature 1": {"temperature": 1, "top_p": 0.9},
    "top_p .9, temperature .3": {"temperature": 0.3, "top_p": 0.9},
    "top_p .9, temperature .05": {"temperature": 0.05, "top_p": 0.9},
    "top_p .9, top_k 50, temperature 1": {"temperature": 1, "top_p": 0.9, "top_k": 50},
}


def measure_sampling(args, port):
    rates = {name: [] for name in SAMPLINGS}
    for repeat in range(args.repeats + 1):
        for name, more in SAMPLINGS.items():
            rate = rate_of(args, port, more)
            if repeat:  # The first one records graphs.
                rates[name].append(rate)
    return {name: statistics.median(of) for name, of in rates.items()}


def rate_of(args, port, more):
    """Tokens/s of `--streams` requests at once."""
    ask = lambda seed: complete(port, text_of(64), args.stream_tokens, min_tokens=args.stream_tokens, seed=seed, **more)
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(args.streams)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return args.streams * args.stream_tokens / (time.perf_counter() - started)


def measure_spans(args, port):
    return [spans_of(args, port, num_tokens) for num_tokens in args.span_tokens]


def spans_of(args, port, num_tokens, num_pieces=8, header=32):
    """Prompts of an earlier one's pieces in another order, and prompts that share nothing, in both modes in turns."""
    pieces = [text_of((num_tokens - header) // num_pieces) for _ in range(num_pieces)]
    complete(port, text_of(header) + sum(pieces, []), kv_sharing={"mode": "span"})
    def shuffled():
        return text_of(header) + sum(random.sample(pieces, num_pieces), [])
    prompts = {"hit": shuffled, "miss": lambda: text_of(num_tokens)}
    row = {"tokens": num_tokens}
    for kind, prompt in prompts.items():
        times, reused = {"prefix": [], "span": []}, 0
        for repeat in range(args.span_repeats + 3):
            for mode in random.sample(list(times), 2):
                answer, seconds = complete(port, prompt(), kv_sharing={"mode": mode, "store": False})
                if repeat >= 3:
                    times[mode].append(seconds * 1e3)
                    reused += json.loads(answer)["usage"]["kv_sharing"]["span_tokens"]
        row |= {f"{kind}_{mode}_ms": statistics.median(of) for mode, of in times.items()}
        row[f"{kind}_reused"] = reused // args.span_repeats
    return row


TABLES = {"scoring": measure_scoring, "sampling": measure_sampling, "spans": measure_spans}


def markdown(args, result):
    names = [name for name, _ in args.builds]
    lines = []
    for model, builds in result.items():
        if "scoring" in args.tables:
            lines += [f"\n{model}, scoring:\n", "| build | tokens | plain, ms | echo + logprobs, ms | ratio | gap beside plain, ms | beside scored, ms | ratio |"]
            lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
            for name in names:
                for row in builds[name]["scoring"]:
                    ratio, gap_ratio = row["scored_ms"] / row["plain_ms"], row["gap_scored_ms"] / row["gap_plain_ms"]
                    times = f"{row['plain_ms']:.1f} | {row['scored_ms']:.1f} | {ratio:.2f} | {row['gap_plain_ms']:.1f} | {row['gap_scored_ms']:.1f}"
                    lines += [f"| {name} | {row['tokens']:,} | {times} | {gap_ratio:.2f} |"]
        if "sampling" in args.tables:
            lines += [f"\n{model}, {args.streams} streams, tokens/s (share of greedy):\n", f"| sampling | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
            for sampling in SAMPLINGS:
                cells = [(builds[name]["sampling"][sampling], builds[name]["sampling"]["greedy"]) for name in names]
                lines += [f"| {sampling} | {' | '.join(f'{rate:,.0f} ({rate / greedy:.2f})' for rate, greedy in cells)} |"]
        if "spans" in args.tables:
            lines += [f"\n{model}, time to first token, ms:\n", "| build | tokens | prefix | span | ratio | reused | miss, prefix | miss, span | ratio |"]
            lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
            for name in names:
                for row in builds[name]["spans"]:
                    hit, miss = row["hit_span_ms"] / row["hit_prefix_ms"], row["miss_span_ms"] / row["miss_prefix_ms"]
                    hits = f"{row['hit_prefix_ms']:.2f} | {row['hit_span_ms']:.2f} | {hit:.3f} | {row['hit_reused']:,}"
                    lines += [f"| {name} | {row['tokens']:,} | {hits} | {row['miss_prefix_ms']:.2f} | {row['miss_span_ms']:.2f} | {miss:.3f} |"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
