#!/usr/bin/env python3
"""What the daemon costs beside the model: overhead of a request, memory, start-up time, and many streams at once.

usage: overhead.py [--kvshare target/release/kvshare] [--model MODEL] [--json FILE] [--markdown FILE]

Overhead of a request is the client's time for a chat of --prompt-tokens tokens that are all in the pool and one generated token, less
the time the engine reports for it (vllm:request_inference_time_seconds, from admission to the end). What remains is HTTP, JSON,
the chat template, the tokenizer, the queue and the way back. The pool keeps the engine's share small, so that its noise does not hide the rest.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "river market seven copper letter winter garden engine yellow harbour music stone paper window morning bridge".split()


def main():
    args = parse_arguments()
    port = free_port()
    started = time.perf_counter()
    with server(args, port) as process:
        startup = wait_until_ready(process, port) - started
        model = request(port, "GET", "/v1/models")["data"][0]["id"]
        result = {"model": model, "startup_seconds": startup, "idle": memory(process)}
        result["overhead_ms"] = overhead(args, port, model)
        result["streams"] = [streams(args, port, model, n) for n in (1, 8, 64)]
        result["loaded"] = memory(process)
    table = markdown(args, result)
    print(table, end="")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text(table)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", type=pathlib.Path, default=ROOT / "target/release/kvshare")
    parser.add_argument("--model", help="the default model if absent; fetch it before, so that start-up time is not a download")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-cache-memory", default="1GiB")
    parser.add_argument("--prompt-tokens", type=int, default=4096)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--stream-tokens", type=int, default=32)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    return parser.parse_args()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(args, port):
    """A daemon of its own, ended by SIGTERM."""
    command = [args.kvshare, "serve", "--host", "127.0.0.1", "--port", str(port), "--threads", str(args.threads)]
    command += ["--kv-cache-memory", args.kv_cache_memory, "--max-num-seqs", "64"]
    command += ["--model", args.model] if args.model else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_until_ready(process, port):
    """The time at which it first says so."""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return time.perf_counter()
        if process.poll() is not None:
            raise SystemExit(f"the server has ended with {process.returncode}")
        time.sleep(0.005)


def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {content[:500]}")
    return json.loads(content) if answer.getheader("Content-Type", "").startswith("application/json") else content.decode()


def metric(port, name):
    """Sum of a metric over its labels."""
    lines = request(port, "GET", "/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def prompt_of(port, model, num_tokens):
    """A text whose chat prompt has as nearly `num_tokens` tokens as whole words allow, and not more."""
    words = random.Random(0).choices(WORDS, k=num_tokens)
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        body = {"model": model, "messages": [{"role": "user", "content": " ".join(words[:middle])}]}
        if request(port, "POST", "/tokenize", body)["count"] <= num_tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


def overhead(args, port, model):
    """Percentiles of client time less engine time, and of both, in milliseconds."""
    text = prompt_of(port, model, args.prompt_tokens)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": "application/json"}
    client, engine = [], []
    for i in range(args.requests + 2):
        before = metric(port, "vllm:request_inference_time_seconds_sum")
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, headers)
        usage = json.loads(connection.getresponse().read())["usage"]
        seconds = time.perf_counter() - start
        if i >= 2:  # The first fills the pool, the second warms up the path through it.
            client.append(1e3 * seconds)
            engine.append(1e3 * (metric(port, "vllm:request_inference_time_seconds_sum") - before))
    rest = [a - b for a, b in zip(client, engine)]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "requests": args.requests,
        "client": percentiles(client),
        "engine": percentiles(engine),
        "overhead": percentiles(rest),
    }


def percentiles(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def streams(args, port, model, num_streams):
    """`num_streams` streams at once, each with a short prompt of its own: tokens a second of all together, and each stream's times."""
    def one(i):
        content = f"Stream {num_streams}.{i}: tell a story about a {random.Random(i).choice(WORDS)}."
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": args.stream_tokens}
        body |= {"temperature": 0, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer, times, tokens = connection.getresponse(), [], 0
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    times.append(time.perf_counter() - start)
        return times[0], (times[-1] - times[0]) / max(1, len(times) - 1), tokens

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(num_streams) as pool:
        results = list(pool.map(one, range(num_streams)))
    seconds = time.perf_counter() - start
    if any(tokens != args.stream_tokens for _, _, tokens in results):
        raise SystemExit(f"a stream of {num_streams} is incomplete")
    return {
        "streams": num_streams,
        "tokens_per_s": num_streams * args.stream_tokens / seconds,
        "ttft_ms_p50": 1e3 * statistics.median(first for first, _, _ in results),
        "ttft_ms_max": 1e3 * max(first for first, _, _ in results),
        "inter_token_ms_p50": 1e3 * statistics.median(gap for _, gap, _ in results),
    }


def memory(process):
    """Resident memory now and at most so far, in MiB."""
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("resident_mib", "VmRSS"), ("peak_mib", "VmHWM"))}


def markdown(args, result):
    cost = result["overhead_ms"]
    lines = [
        f"{result['model']}, {args.threads} threads, KV pool {args.kv_cache_memory}, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores",
        "",
        "| | |",
        "|---|--:|",
        f"| start to ready | {result['startup_seconds']:.2f} s |",
        f"| resident memory, idle | {result['idle']['resident_mib']:.0f} MiB |",
        f"| resident memory, after the load (peak) | {result['loaded']['resident_mib']:.0f} ({result['loaded']['peak_mib']:.0f}) MiB |",
        "",
        f"Chat of {cost['prompt_tokens']} tokens, {cost['cached_tokens']} of them in the pool, one token generated, {cost['requests']} requests:",
        "",
        "| ms | p50 | p90 | p99 |",
        "|---|--:|--:|--:|",
    ]
    for name in ("client", "engine", "overhead"):
        lines.append(f"| {name} | " + " | ".join(f"{cost[name][p]:.2f}" for p in ("p50", "p90", "p99")) + " |")
    lines += ["", "| streams at once | tokens/s together | TTFT p50 ms | TTFT max ms | between tokens p50 ms |", "|--:|--:|--:|--:|--:|"]
    for row in result["streams"]:
        figures = (row["tokens_per_s"], row["ttft_ms_p50"], row["ttft_ms_max"], row["inter_token_ms_p50"])
        lines.append(f"| {row['streams']} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
