#!/usr/bin/env python3
"""What a daemon does under clients that mean it no good: statuses, memory, health checks, and a healthy stream beside them.

usage: hostile.py [--kvshare target/release/kvshare] [--model MODEL] [--address-space 2GiB] [--only KIND ...] [--markdown FILE]

Each kind of attack meets a fresh daemon on loopback, within a limit of its address space. Meanwhile one client reads a stream, and another
asks /health on new connections, 25 times a second. Memory is the peak of the resident set over what it was before, and what is
left over that 12 s after (threads without work live 10 s). Each attack is over after --seconds at the latest, and opens at most --connections connections.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BODY_BYTES = 2 * 2**20 - 1000
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def main():
    args = parse_arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    args.connections = min(args.connections, hard - 512)
    kinds = {name: attack for name, attack in attacks(args).items() if not args.only or name in args.only}
    rows = [measure(args, name, attack) for name, attack in kinds.items()]
    table = markdown(args, rows)
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", type=pathlib.Path, default=ROOT / "target/release/kvshare")
    parser.add_argument("--model", help="the default model if absent; fetch it before")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--address-space", type=gib, default=2 * 2**30)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--connections", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--markdown", type=pathlib.Path)
    return parser.parse_args()


def gib(text):
    return int(float(text.removesuffix("GiB")) * 2**30)


def attacks(args):
    """By name: a function of a port that attacks it and returns the statuses it was answered."""

    def fill(part):
        return part * (BODY_BYTES // len(part.encode()))

    def bodies(path, body, num=args.at_once):
        return lambda port, deadline: post_at_once(port, path, body.encode(), num, deadline)

    def completion(prompt):
        return json.dumps({"prompt": prompt, "max_tokens": 1}, ensure_ascii=False)

    fields = "{" + ",".join(f'"x{i}":0' for i in range(100_000)) + "}"
    chat = json.dumps({"messages": [{"role": "user", "content": fill("a")}]})
    return {
        "nothing": lambda port, deadline: time.sleep(8) or collections.Counter(),
        "emoji": bodies("/v1/completions", completion(fill("\N{GRINNING FACE}"))),
        "one word": bodies("/v1/chat/completions", chat),
        "base64 to /tokenize": bodies("/tokenize", json.dumps({"prompt": fill("TG9yZW0gaXBzdW0gZG9sb3Igc2l0")})),
        "unknown fields": bodies("/v1/completions", fields),
        "token ids": bodies("/v1/completions", completion([5] * 500_000)),
        "half-open heads": lambda port, deadline: half_open(port, HEAD.encode(), args.connections, deadline),
        "half-open bodies": lambda port, deadline: half_open(
            port, (HEAD + "Content-Length: 2000000\r\n\r\n{").encode(), args.connections, deadline
        ),
    }


def measure(args, name, attack):
    port = free_port()
    with server(args, port) as process:
        wait_until_ready(process, port)
        stream(port, 8)
        alone = stream(port, 64)
        before = memory(process, "VmRSS")
        health, over = [], threading.Event()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pool.submit(watch_health, port, health, over)
            beside = pool.submit(stream, port, 192)
            time.sleep(0.5)
            started = time.perf_counter()
            try:
                statuses = attack(port, time.monotonic() + args.seconds)
            finally:
                seconds = time.perf_counter() - started
                over.set()
            gaps = beside.result()
        survived = process.poll() is None
        peak = memory(process, "VmHWM") - before if survived else None
        time.sleep(12)
        kept = memory(process, "VmRSS") - before if survived else None
    answered = [latency for latency in health if latency is not None]
    return {
        "attack": name,
        "statuses": ", ".join(f"{num} x {status}" for status, num in sorted(statuses.items(), key=str)) or "-",
        "seconds": f"{seconds:.1f}",
        "peak": mib(peak),
        "kept": mib(kept),
        "health": f"{quantile(answered, .5):.1f} / {quantile(answered, .99):.1f}" if answered else "-",
        "unanswered": f"{len(health) - len(answered)} of {len(health)}",
        "stream": f"{max(gaps) * 1000:.0f} ({max(alone) * 1000:.0f} alone)" if gaps else "broken",
        "daemon": "lives" if survived else "dead",
    }


def post_at_once(port, path, body, num, deadline):
    """Statuses of `num` requests at once; each gives up at the deadline."""

    def one(_):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=max(0.1, deadline - time.monotonic()))
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        except TimeoutError:
            return "no answer"
        except (OSError, http.client.HTTPException):
            return "closed"

    with concurrent.futures.ThreadPoolExecutor(num) as pool:
        return collections.Counter(pool.map(one, range(num)))


def half_open(port, start, num, deadline):
    """Begins `num` requests, ends none of them, and holds them until the deadline."""
    sockets = []
    for _ in range(num):
        opened = socket.socket()
        opened.settimeout(1)
        try:
            opened.connect(("127.0.0.1", port))
            opened.sendall(start)
        except OSError:
            opened.close()
            if time.monotonic() > deadline:
                break
            continue
        sockets.append(opened)
    time.sleep(max(0, deadline - time.monotonic()))
    for opened in sockets:
        opened.close()
    return collections.Counter({"opened": len(sockets)})


def watch_health(port, latencies, over):
    """Milliseconds of one health check after another; None for one that is not answered within two seconds."""
    while not over.is_set():
        started = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/health")
            connection.getresponse().read()
            latencies.append((time.perf_counter() - started) * 1000)
            connection.close()
        except (OSError, http.client.HTTPException):
            latencies.append(None)
        time.sleep(0.04)


def stream(port, num_tokens):
    """Seconds between the events of an answer; none if it breaks off."""
    body = {"prompt": "Once upon a time", "max_tokens": num_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer, times, last = connection.getresponse(), [], b""
        while line := answer.readline():
            if line.startswith(b"data: "):
                times.append(time.perf_counter())
                last = line
    except (OSError, http.client.HTTPException):
        return []
    return [b - a for a, b in zip(times, times[1:])] if last.strip() == b"data: [DONE]" else []


@contextlib.contextmanager
def server(args, port):
    """A daemon of its own within the limit, ended by SIGTERM."""
    command = [args.kvshare, "serve", "--port", str(port), "--threads", str(args.threads), "--kv-cache-memory", "64MiB"]
    command += ["--shutdown-timeout", "5s", *(["--model", args.model] if args.model else [])]

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (args.address_space, args.address_space))

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
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
            sys.exit(f"kvshare ended with {process.returncode}")
        time.sleep(0.05)


def memory(process, name):
    """A figure of /proc, in bytes."""
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def mib(num_bytes):
    return "-" if num_bytes is None else f"{num_bytes / 2**20:.0f}"


def markdown(args, rows):
    version = subprocess.run([args.kvshare, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    text = f"{version}, commit {commit}, {os.cpu_count()} cores, {args.threads} thread(s) compute, address space of {args.address_space / 2**30:g} GiB,\n"
    text += f"{args.at_once} bodies of 2 MB at once, {args.connections} connections\n\n"
    text += "| attack | answers | s | peak, MiB more | kept, MiB | /health p50 / p99, ms | not answered | longest gap of a stream, ms | daemon |\n"
    text += "|---|---|--:|--:|--:|--:|--:|--:|---|\n"
    keys = ["attack", "statuses", "seconds", "peak", "kept", "health", "unanswered", "stream", "daemon"]
    return text + "".join("| " + " | ".join(row[key] for key in keys) + " |\n" for row in rows)


if __name__ == "__main__":
    main()
