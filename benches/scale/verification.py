#!/usr/bin/env python3
"""What verification in idle time costs the requests beside it (standard library only).

usage: verification.py --model MODEL [--device cpu|cuda:N] [--threads N] [--rounds N] [--markdown FILE] NAME=BINARY ...

Starts each binary on a free port of the loopback, with `--verify-share` 0, its default, and 1. A client sends a prompt whose document an
earlier one has too, so that its answer is one over moved spans; after a pause of 50 to 600 ms, which is the same in every run, a short
request of new text comes, and after other pauses two more. Times are those of the short requests, from the first byte sent to the last one
received. All servers are asked in turn, round by round, so that what else runs on the machine meets them alike; those that are not asked are
stopped meanwhile."""

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

SHARES = ["0", None, "1"]
SHORT_PER_ROUND = 3
WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "s", "t", "l", "m")]


class Server:
    """A daemon on the loopback, with what was measured of it."""

    def __init__(self, name, binary, share, options):
        self.name, self.share, self.times, self.num_answers, self.num_reused = name, share, [], 0, 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [binary, "serve", "--device", options.device, "--port", str(self.port), "--model", options.model, "--log-filter", "warn"]
        command += ["--threads", str(options.threads), "--kv-cache-memory", "512MiB", "--kv-sharing", "span"]
        command += ["--verify-share", share] if share is not None else []
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self):
        for _ in range(600):
            try:
                return self.get("/health/ready")
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{self.name} ended with {self.process.returncode}")
                time.sleep(0.1)
        sys.exit(f"{self.name} did not start")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=600) as answer:
            return answer.read().decode()

    def complete(self, prompt, max_tokens, **options):
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **options}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            found = json.loads(answer.read())
        return found["usage"], time.perf_counter() - began

    def counter(self, name):
        return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} ([0-9.e+]+)$", self.get("/metrics"), re.M))


def words(seed, count):
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(count))


def play_round(server, number, document):
    """One answer over spans, and short requests after it."""
    usage, _ = server.complete(words(f"head {number}", 30) + "\n\n" + document, 16)
    server.num_answers += 1
    server.num_reused += usage["kv_sharing"]["span_tokens"] > 0
    pauses = random.Random(f"pause {number}")
    for i in range(SHORT_PER_ROUND):
        time.sleep(0.05 if i == 0 and number % 2 == 0 else pauses.uniform(0.05, 0.6))
        _, seconds = server.complete(words(f"short {number} {i}", 20), 4, kv_sharing={"store": False})
        server.times.append(1e3 * seconds)


def percentile(values, share):
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def table(servers, options):
    lines = [
        "# Verification beside traffic",
        "",
        f"`benches/scale/verification.py --model {os.path.basename(options.model)} --rounds {options.rounds} "
        + " ".join(f"{name}=kvshare" for name in dict.fromkeys(server.name for server in servers)) + "`",
        "",
        f"Short requests (20 words, 4 tokens) 50 to 600 ms after an answer over a document of {options.document_words} words, "
        f"{options.rounds * SHORT_PER_ROUND} of them for each row, {options.threads} threads. Ratios are to the share 0 of the same binary.",
        "",
        "| | verify share | p50, ms | p99, ms | longest, ms | p99, ratio | answers over spans | verified | put off |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = {}
    for server in servers:
        p99 = percentile(server.times, 0.99)
        base.setdefault(server.name, p99)
        verified = server.counter("kvshare_verified_answers_total")
        put_off = server.counter("kvshare_verification_put_off_total")
        lines.append(
            f"| {server.name} | {server.share or 'default'} | {statistics.median(server.times):.0f} | {p99:.0f} "
            f"| {max(server.times):.0f} | {p99 / base[server.name]:.2f} | {server.num_reused} of {server.num_answers} "
            f"| {verified:.0f} | {put_off:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--document-words", type=int, default=300)
    parser.add_argument("--markdown")
    parser.add_argument("binaries", nargs="+", metavar="NAME=BINARY")
    options = parser.parse_args()
    # So that a run that is ended leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    document = words("document", options.document_words)
    servers = []
    try:
        for named in options.binaries:
            name, binary = named.split("=", 1)
            servers += [Server(name, binary, share, options) for share in SHARES]
        for server in servers:
            server.wait()
            server.complete(words("warm", 30) + "\n\n" + document, 1, kv_sharing={"mode": "prefix"})
            server.process.send_signal(signal.SIGSTOP)
        for number in range(options.rounds):
            for server in servers:
                server.process.send_signal(signal.SIGCONT)
                play_round(server, number, document)
                server.process.send_signal(signal.SIGSTOP)
        for server in servers:
            server.process.send_signal(signal.SIGCONT)
        text = table(servers, options)
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGCONT)
            server.process.terminate()
            server.process.wait()
    print(text)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as out:
            out.write(text)


main()
