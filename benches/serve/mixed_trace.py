#!/usr/bin/env python3
"""Goodput of a mixed trace under prefix caching and under span sharing: how many requests a second get their first token in time.

usage: mixed_trace.py --data DIR --workloads WORKLOADS_PY [--speed-up 1,2,4] [--modes prefix,semantic] [--json FILE] [--markdown FILE]
                      [--serve-args "--device cpu --threads 2"]

The requests are those of workloads w1 to w7, as many of each kind, with one header in front of each, as gateways add: prefixes end there.
Requests of one group keep their order and lie some way apart, with others between them. They arrive when requests of the Azure trace of
conversations did (2023, first ones), so many times faster as --speed-up says, whether or not earlier ones have been answered, and
are as long as the workload's prompts and the trace's answers, at most --max-output tokens. What does not fit the model is left out.
Each mode and rate has a server of its own. Goodput is requests with a first token within --ttft-bound, by the time in which all arrive.
Standard library only.
"""

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKLOADS = ["w1", "w1b", "w2", "w3", "w4", "w5", "w6", "w7"]
TRACE = "traces_azure2023_conv.jsonl"
GOODPUT_SHARE = 0.9  # Below this part of what arrives, a rate is beyond what the server can do.


def main():
    args = parse_arguments()
    candidates = candidates_of(args)
    with server(args, args.modes[0]) as port:
        kinds = [fitting(records, port) for records in candidates]
    num_too_long = sum(map(len, candidates)) - sum(map(len, kinds))
    requests = sorted(mix(kinds, args.requests), key=place)
    arrivals = arrivals_of(args, len(requests))
    print(f"{len(requests)} requests, {num_too_long} left out as too long, prompts of {summary_of_lengths(requests)} tokens", file=sys.stderr)
    runs = []
    for speed_up in args.speed_up:
        for mode in args.modes:
            runs.append(run(args, mode, speed_up, requests, arrivals))
            print(json.dumps(runs[-1]), file=sys.stderr)
            if args.json:  # After each run, so that one that is cut short was not for nothing.
                args.json.write_text(json.dumps(result_of(args, requests, num_too_long, runs), indent=2) + "\n")
    table = markdown(args, result_of(args, requests, num_too_long, runs))
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)


def parse_arguments():
    numbers = lambda text: [float(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the workloads' data and of the trace")
    parser.add_argument("--workloads", type=pathlib.Path, required=True, help="generator: python3 WORKLOADS_PY DATA_DIR w1 GROUPS")
    parser.add_argument("--groups", type=int, default=200, help="groups asked of each workload")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--speed-up", type=numbers, default=[1.0, 2.0, 4.0], help="of arrivals, in rising order")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["prefix", "semantic"])
    parser.add_argument("--ttft-bound", type=float, default=1.0, help="seconds")
    parser.add_argument("--max-output", type=int, default=128)
    parser.add_argument("--kvshare", type=pathlib.Path, default=ROOT / "target/release/kvshare")
    parser.add_argument("--model", help="the default model if absent")
    parser.add_argument("--serve-args", type=shlex.split, default=[], help="more flags of kvshare serve")
    parser.add_argument("--log", type=pathlib.Path, help="the servers' logs; nowhere if absent")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    if len(args.modes) > 1 and args.modes[0] != "prefix":
        parser.error("the first of several modes has to be prefix: the others are compared with it")
    if args.requests < 2:
        parser.error("a rate takes two requests at least")
    return args


# ---- What is sent


def unit(text):
    """A number in 0..1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def candidates_of(args):
    """Requests of each workload, group by group in an order that depends on their names alone: so many that one kind would do."""
    candidates = []
    for workload in WORKLOADS:
        command = [sys.executable, args.workloads, args.data, workload, str(args.groups)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().splitlines()
        records = sorted(map(json.loads, lines), key=lambda record: unit(f"group {record['workload']} {record['group']}"))
        candidates.append([with_header(record) for record in records[: args.requests]])
    return candidates


def mix(kinds, count):
    """As many of each kind as it has, up to `count` in all: one of each in turn."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    chosen = [record for record in turns if record is not None][:count]
    if len(chosen) < count:
        raise SystemExit(f"{len(chosen)} requests fit the model, not {count}: raise --groups or lower --requests")
    return chosen


def place(record):
    """Groups begin anywhere in the first nine tenths; who has a donor comes later than it, by up to a tenth of all."""
    name = f"{record['workload']} {record['group']}"
    behind = 0 if record["donor_id"] is None else 0.02 + 0.08 * unit(record["id"])
    return 0.9 * unit(f"start {name}") + behind


def with_header(record):
    stamp = hashlib.sha256(record["id"].encode()).hexdigest()
    header = f"Request {stamp[:12]} | client {stamp[12:16]} | 2025-03-{int(stamp[16:18], 16) % 28 + 1:02} {int(stamp[18:20], 16) % 24:02}:00\n"
    first, *others = record["messages"]
    return record | {"messages": [first | {"content": header + first["content"]}, *others]}


def fitting(requests, port):
    """Requests that leave room for their answer, with their lengths."""
    kept = []
    for record in requests:
        answer = ask(port, "POST", "/tokenize", {"messages": record["messages"]})
        if answer["count"] + record["max_tokens"] <= answer["max_model_len"]:
            kept.append(record | {"prompt_tokens": answer["count"]})
    return kept


def arrivals_of(args, count):
    """Times of arrival from the first one on, in seconds, and lengths of answers."""
    with open(args.data / TRACE, encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(count))]
    if len(records) < count:
        raise SystemExit(f"the trace has {len(records)} requests, not {count}")
    return [(record["arrival_s"], max(1, record["output_length"])) for record in records]


# ---- The server


@contextlib.contextmanager
def server(args, mode):
    """The port of a daemon of its own, ended by SIGTERM."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [args.kvshare, "serve", "--host", "127.0.0.1", "--port", str(port), "--kv-sharing", mode]
    command += ["--max-queue", "1000000", *(["--model", args.model] if args.model else []), *args.serve_args]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(args.log, "ab")) if args.log else subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(process, port)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process, port):
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        if process.poll() is not None:
            raise SystemExit(f"the server has ended with {process.returncode}")
        time.sleep(0.05)


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {content[:500]}")
    return json.loads(content)


# ---- One run


def run(args, mode, speed_up, requests, arrivals):
    """All requests at one rate against a fresh server in one mode."""
    with server(args, mode) as port:
        # Not one of the trace's: a device may prepare itself at the first request.
        ask(port, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8})
        answers, span = asyncio.run(send_all(args, port, speed_up, requests, arrivals))
    good = [answer for answer in answers if answer["ttft"] is not None]
    in_time = sum(answer["ttft"] <= args.ttft_bound for answer in good)
    rate = len(answers) / span
    usage = lambda key: sum(answer["usage"].get(key, 0) for answer in good)
    return {
        "mode": mode,
        "speed_up": speed_up,
        "offered_per_s": rate,
        "goodput_per_s": in_time / span,
        "in_time": in_time / len(answers),
        "failed": len(answers) - len(good),
        "ttft_s": percentiles([answer["ttft"] for answer in good]),
        "output_tokens_per_s": sum(answer["completion_tokens"] for answer in good) / max(answer["end"] for answer in good) if good else 0.0,
        "prompt_tokens": sum(answer["prompt_tokens"] for answer in good),
        "prefix_tokens": usage("prefix_tokens"),
        "span_tokens": usage("span_tokens"),
        "recomputed_tokens": usage("recomputed_tokens"),
    }


async def send_all(args, port, speed_up, requests, arrivals):
    """What came of each request; and the time in which they all arrive, one mean gap behind the last included."""
    began = time.perf_counter()

    async def send_one(record, arrival, output_length):
        await asyncio.sleep(max(0.0, began + arrival / speed_up - time.perf_counter()))
        max_tokens = min(output_length, record["max_tokens"], args.max_output)
        body = {"messages": record["messages"], "max_tokens": max_tokens, "temperature": 0, "stream": True, "ignore_eos": True}
        answer = {"ttft": None, "usage": {}, "prompt_tokens": 0, "completion_tokens": 0}
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await stream(port, body | {"stream_options": {"include_usage": True}}, answer)
        return answer | {"end": time.perf_counter() - began}

    pairs = zip(requests, arrivals)
    answers = await asyncio.gather(*(send_one(record, arrival, length) for record, (arrival, length) in pairs))
    last = arrivals[-1][0] / speed_up
    return answers, last * len(arrivals) / max(1, len(arrivals) - 1)


async def stream(port, body, answer):
    """Sends a request and notes its times and usage in `answer`. The server closes the connection at the end."""
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    try:
        writer.write(head.encode() + content)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            return
        first = None
        async for line in reader:
            # Chunk sizes stand on lines of their own, and an event on one.
            if not line.startswith(b"data: {") or (first is not None and b'"kv_sharing"' not in line):
                continue  # Between the first token and the usage nothing is of interest, and reading it would take the client's time.
            event = json.loads(line[6:])
            if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - sent
            if event.get("usage"):
                answer["usage"] = event["usage"]["kv_sharing"]
                answer["prompt_tokens"] = event["usage"]["prompt_tokens"]
                answer["completion_tokens"] = event["usage"]["completion_tokens"]
                # A first token whose text is empty shows at the end.
                answer["ttft"] = time.perf_counter() - sent if first is None else first
    finally:
        writer.close()


def percentiles(values):
    if len(values) < 2:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0, "mean": 0.0}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "mean": statistics.mean(values)}


# ---- The result


def result_of(args, requests, num_too_long, runs):
    saturated = {mode: saturation(runs, mode) for mode in args.modes}
    return {
        "model": pathlib.Path(args.model).name if args.model else "the default model",
        "serve_args": " ".join(args.serve_args),
        "requests": len(requests),
        "too_long": num_too_long,
        "prompt_tokens": summary_of_lengths(requests),
        "max_output": args.max_output,
        "ttft_bound_s": args.ttft_bound,
        "saturated_at_speed_up": saturated,
        "goodput_ratio": {mode: ratios(runs, mode) for mode in args.modes[1:]},
        "runs": runs,
    }


def summary_of_lengths(requests):
    lengths = sorted(record["prompt_tokens"] for record in requests)
    at = lambda share: lengths[int(share * (len(lengths) - 1))]
    return f"{at(0.5)} (median) and {at(0.9)} (p90)"


def saturation(runs, mode):
    """The first speed-up at which less than nine tenths of what arrives is in time; None if all of them are."""
    for entry in runs:
        if entry["mode"] == mode and entry["goodput_per_s"] < GOODPUT_SHARE * entry["offered_per_s"]:
            return entry["speed_up"]
    return None


def ratios(runs, mode):
    """By speed-up, goodput of `mode` beside prefix; None where prefix has none."""
    goodput = {(entry["mode"], entry["speed_up"]): entry["goodput_per_s"] for entry in runs}
    both = [speed_up for other, speed_up in goodput if other == mode and ("prefix", speed_up) in goodput]
    divide = lambda a, b: a / b if b else None
    return {str(speed_up): divide(goodput[mode, speed_up], goodput["prefix", speed_up]) for speed_up in both}


def markdown(args, result):
    lines = [
        f"{result['model']}{' ' if result['serve_args'] else ''}{result['serve_args']}, {result['requests']} requests of {result['prompt_tokens']}"
        f" prompt tokens and at most {args.max_output} generated, first token within {args.ttft_bound:g} s, {os.cpu_count()} cores,"
        f" commit {commit()}",
        "",
        "| speed-up | mode | arrive /s | goodput /s | in time | failed | TTFT p50 s | p90 | p99 | prefix tokens | span tokens | beside prefix |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for entry in result["runs"]:
        ratio = result["goodput_ratio"].get(entry["mode"], {}).get(str(entry["speed_up"]))
        total = max(1, entry["prompt_tokens"])
        cells = [f"{entry['speed_up']:g}", entry["mode"], f"{entry['offered_per_s']:.2f}", f"{entry['goodput_per_s']:.2f}"]
        cells += [f"{100 * entry['in_time']:.0f} %", str(entry["failed"])]
        cells += [f"{entry['ttft_s'][p]:.3f}" for p in ("p50", "p90", "p99")]
        cells += [f"{100 * entry[kind] / total:.0f} %" for kind in ("prefix_tokens", "span_tokens")]
        lines.append("| " + " | ".join([*cells, "" if ratio is None else f"{ratio:.2f}"]) + " |")
    lines.append("")
    for mode, speed_up in result["saturated_at_speed_up"].items():
        reached = "not reached" if speed_up is None else f"speed-up {speed_up:g}"
        lines.append(f"- {mode}: less than {GOODPUT_SHARE:.0%} in time at {reached}; best goodput {best(result['runs'], mode):.2f} a second")
    return "\n".join(lines) + "\n"


def best(runs, mode):
    return max(entry["goodput_per_s"] for entry in runs if entry["mode"] == mode)


def commit():
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return found.stdout.decode().strip() or "none"


if __name__ == "__main__":
    main()
