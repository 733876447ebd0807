#!/usr/bin/env python3
"""What the daemon costs beside the model: overhead of a request, memory, start-up time, and many streams at once.

usage: overhead.py [--kvshare target/release/kvshare] [--model MODEL] [--json FILE] [--markdown FILE] [--engine-args "--device cpu"]

Overhead of a request is the client's time for a chat of --prompt-tokens tokens that are all in the pool and one generated token, less
the time the engine reports for it (vllm:request_inference_time_seconds, from admission to the end). What remains is HTTP, JSON,
the chat template, the tokenizer, the queue and the way back. The pool keeps the engine's share small, so that its noise does not hide the rest.

Streams are compared with as many requests of the same lengths in the engine alone (kvshare bench engine --throughput), before the server
starts: both from the first request to the end of the last. Clients are processes of their own, so that none of them slows another.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import random
import shlex
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
    alone = {n: engine_alone(args, n) for n in args.streams}
    started = time.perf_counter()
    with server(args, port) as process:
        startup = wait_until_ready(process, port) - started
        model = request(port, "GET", "/v1/models")["data"][0]["id"]
        result = {"model": model, "startup_seconds": startup, "idle": memory(process)}
        result["overhead_ms"] = overhead(args, port, model)
        result["streams"] = [streams(args, port, model, n) | {"engine": alone[n]} for n in args.streams]
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
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--stream-prompt-tokens", type=int, default=128)
    parser.add_argument("--stream-tokens", type=int, default=32)
    parser.add_argument("--stream-repeats", type=int, default=3)
    parser.add_argument("--engine-args", type=shlex.split, default=[], help="more flags of both kvshare serve and kvshare bench engine")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    return parser.parse_args()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def engine_flags(args):
    """What the server and the engine alone are both told."""
    flags = ["--threads", str(args.threads), "--kv-cache-memory", args.kv_cache_memory, "--max-num-seqs", str(max(64, *args.streams))]
    return flags + (["--model", args.model] if args.model else []) + args.engine_args


def engine_alone(args, num_streams):
    """Output tokens a second of as many requests as streams, without HTTP and text."""
    load = f"{num_streams}x{args.stream_prompt_tokens}+{args.stream_tokens}"
    command = [args.kvshare, "bench", "engine", "--lengths", "16", "--decode-tokens", "1", "--donors", "0", "--throughput", load]
    command += ["--repeats", str(args.stream_repeats), "--json", "-", *engine_flags(args)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return report["throughput"]["output_tokens_per_s"]


@contextlib.contextmanager
def server(args, port):
    """A daemon of its own, ended by SIGTERM."""
    command = [args.kvshare, "serve", "--host", "127.0.0.1", "--port", str(port), *engine_flags(args)]
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


def prompt_of(port, model, num_tokens, seed=0):
    """A text whose chat prompt has as nearly `num_tokens` tokens as whole words allow, and not more."""
    words = random.Random(seed).choices(WORDS, k=num_tokens)
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
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    client, engine = [], []
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(args.requests + 2):
            before = metric(port, "vllm:request_inference_time_seconds_sum")
            start = time.perf_counter()
            connection.sendall((head + body).encode())
            answer = receive(connection)
            seconds = time.perf_counter() - start
            usage = json.loads(answer)["usage"]
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


def receive(connection):
    """The body of an answer. No HTTP library: parsing is not what is measured."""
    def more():
        part = connection.recv(1 << 16)
        if not part:
            raise SystemExit("the server has closed the connection")
        return part

    data = b""
    while b"\r\n\r\n" not in data:
        data += more()
    head, body = data.split(b"\r\n\r\n", 1)
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise SystemExit(f"a chat was not answered: {data[:500]}")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += more()
    return body


def percentiles(values):
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def streams(args, port, model, num_streams):
    """`num_streams` streams at once, each with a prompt of its own: tokens a second of all together, and each stream's times; the run
    with the median speed."""
    runs = [streams_once(args, port, model, num_streams, round) for round in range(args.stream_repeats)]
    return sorted(runs, key=lambda run: run["tokens_per_s"])[len(runs) // 2]


def streams_once(args, port, model, num_streams, round):
    seeds = [f"{num_streams}.{round}.{i}" for i in range(num_streams)]
    bodies = []
    for seed in seeds:
        body = {"model": model, "messages": [{"role": "user", "content": prompt_of(port, model, args.stream_prompt_tokens, seed)}]}
        body |= {"max_tokens": args.stream_tokens, "temperature": 0, "stream": True, "ignore_eos": True, "kv_sharing": {"mode": "off"}}
        bodies.append(json.dumps(body | {"stream_options": {"include_usage": True}}))
    num_clients = min(num_streams, os.cpu_count(), 8)
    shares = [bodies[i::num_clients] for i in range(num_clients)]
    start = time.time() + 2  # All clients are there by then, on a busy machine too: who is late counts as slow.
    with concurrent.futures.ProcessPoolExecutor(num_clients) as pool:
        results = [result for results in pool.map(client, [port] * num_clients, shares, [start] * num_clients) for result in results]
    if any(tokens != args.stream_tokens for *_, tokens in results):
        raise SystemExit(f"a stream of {num_streams} is incomplete")
    return {
        "streams": num_streams,
        "tokens_per_s": num_streams * args.stream_tokens / max(end for _, _, end, _ in results),
        "ttft_ms_p50": 1e3 * statistics.median(first for first, *_ in results),
        "ttft_ms_max": 1e3 * max(first for first, *_ in results),
        "inter_token_ms_p50": 1e3 * statistics.median(gap for _, gap, _, _ in results),
    }


def client(port, bodies, start):
    """Streams of one process, all begun at the time `start`."""
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: one_stream(port, body, start), bodies))


def one_stream(port, body, start):
    """Seconds from `start` to the first token and between two tokens, seconds to the end, and tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.connect()
    time.sleep(max(0.0, start - time.time()))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    # Read now and understood later, so that the client is not what is measured.
    lines = [(time.time() - start, line) for line in connection.getresponse() if line.startswith(b"data: {")]
    chunks = [(at, json.loads(line[6:])) for at, line in lines]
    times = [at for at, chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("content")]
    tokens = chunks[-1][1]["usage"]["completion_tokens"]
    return times[0], (times[-1] - times[0]) / max(1, len(times) - 1), chunks[-1][0], tokens


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
    lines += ["", f"Streams of {args.stream_prompt_tokens} prompt tokens and {args.stream_tokens} generated, sharing off, median of {args.stream_repeats}:", ""]
    lines += ["| streams at once | tokens/s together | engine alone | ratio | TTFT p50 ms | TTFT max ms | between tokens p50 ms |"]
    lines += ["|--:|--:|--:|--:|--:|--:|--:|"]
    for row in result["streams"]:
        times = [f"{row[key]:.1f}" for key in ("ttft_ms_p50", "ttft_ms_max", "inter_token_ms_p50")]
        speeds = [f"{row['tokens_per_s']:.1f}", f"{row['engine']:.1f}", f"{row['tokens_per_s'] / row['engine']:.2f}"]
        lines.append("| " + " | ".join([str(row["streams"]), *speeds, *times]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
