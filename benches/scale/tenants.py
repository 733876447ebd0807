#!/usr/bin/env python3
"""What one tenant's requests do to another one's: long prompts, many streams, a flood, quotas; each daemon in the same run.

usage: tenants.py --tokenizer MODEL.gguf --binary before=OLD --binary after=target/release/kvshare [--markdown FILE] [--json FILE]

Random weights in a small shape, so that only the order of the work matters: read ratios. Tenant B sends requests one after the other,
first alone, then beside what the other tenants do; each scenario has a fresh daemon. A request that has no answer when the scenario
ends counts with the time it has waited. A's own time to first token is compared with that of the same prompt alone.
"""

import argparse
import contextlib
import hashlib
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
import tempfile
import threading
import time

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
SEATS = 8
QUEUE = 32
VOCABULARY = 30_000


class Scenario:
    def __init__(self, name, others, quotas=None, client=(1000, 8)):
        self.name, self.others, self.quotas, self.client = name, others, quotas or {}, client


def scenarios(args):
    """Each of the others: tenant, requests at once, prompt tokens, answer tokens, whether it goes on when they are answered."""
    long = args.long
    return [
        Scenario(f"A: a prompt of {long} tokens", [("a", 1, long, 1, False)]),
        Scenario("the same, B sends 220 tokens for one", [("a", 1, long, 1, False)], client=(220, 1)),
        Scenario("the same, B sends 220 tokens for 16", [("a", 1, long, 1, False)], client=(220, 16)),
        Scenario(f"A: a prompt of {long}, one of {long * 3 // 5} waits", [("a", 1, long, 1, False), ("a", 1, long * 3 // 5, 1, False)]),
        Scenario("A: prompts of 3900 tokens, three at a time", [("a", 3, 3900, 1, True)]),
        Scenario(f"A and C: a prompt of {long // 2} tokens each", [("a", 1, long // 2, 1, False), ("c", 1, long // 2, 1, False)]),
        Scenario(f"A: {SEATS} streams of 1500 tokens on {SEATS} seats", [("a", SEATS, 30, 1500, True)], client=(200, 8)),
        Scenario("the same, B has a quota of .25", [("a", SEATS, 30, 1500, True)], {"b": 0.25}, client=(200, 8)),
        Scenario(f"A: {SEATS + QUEUE} requests of 300 tokens at a time, {QUEUE} places", [("a", SEATS + QUEUE, 300, 64, True)], client=(200, 8)),
    ]


def main():
    args = parse_arguments()
    results = []
    for scenario in scenarios(args):
        row = {"scenario": scenario.name}
        for name, binary in args.binary:
            row[name] = measure(args, binary, scenario)
            print(f"{scenario.name}, {name}: {row[name]}", file=sys.stderr)
        results.append(row)
    table = markdown(args, results)
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def parse_arguments():
    def binary(text):
        name, _, path = text.rpartition("=")
        return name or pathlib.Path(path).name, pathlib.Path(path)

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", type=binary, action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="GGUF file or tokenizer.json with a vocabulary")
    parser.add_argument("--long", type=int, default=16_000, help="tokens of a long prompt")
    parser.add_argument("--seconds", type=float, default=10.0, help="longest time of a scenario")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def measure(args, binary, scenario):
    with daemon(args, binary, scenario.quotas) as port:
        client = Client(port, "b", *scenario.client)
        for _ in range(3):
            client.request()
        idle = [client.request()[0] for _ in range(10)]
        alone = None
        if len(scenario.others) == 1 and scenario.others[0][3] == 1 and not scenario.others[0][4]:
            alone = Client(port, "a", scenario.others[0][2], 1).request()[0]
        over = threading.Event()
        others = [Other(port, over, *other) for other in scenario.others for _ in range(other[1])]
        for other in others:
            other.start()
        time.sleep(0.05)
        times, refused = beside(args, client, others)
        over.set()
        result = {
            "requests": len(times),
            "p50": statistics.median(times) / statistics.median(idle) if times else None,
            "p99": percentile(times, 0.99) / percentile(idle, 0.99) if times else None,
            "refused": refused,
        }
        if alone:
            first = [other.first for other in others if other.first]
            result["own"] = first[0] / alone if first else None
        return result


def beside(args, client, others):
    """Times of the client's requests until none of the others has anything left, or the time is over."""
    times, refused, began = [], 0, time.perf_counter()
    end = began + args.seconds
    while any(other.is_alive() for other in others) and time.perf_counter() < end:
        sent = time.perf_counter()
        answer = {}
        thread = threading.Thread(target=ask, args=(client, answer), daemon=True)
        thread.start()
        thread.join(max(end - sent, 0) + args.seconds)
        if answer.get("status") == 429:
            refused += 1
            time.sleep(0.02)
        else:
            times.append(answer.get("time", time.perf_counter() - sent))
        if not answer:
            break
    for other in others:
        if not other.goes_on:
            other.join(args.seconds * 2)
    return times, refused


def ask(client, answer):
    # The daemon is killed when the scenario is over.
    with contextlib.suppress(OSError, http.client.HTTPException):
        answer["time"], answer["status"] = client.request()


class Client:
    def __init__(self, port, tenant, prompt, answer):
        self.port, self.tenant, self.prompt, self.answer = port, tenant, prompt, answer
        self.random = random.Random(f"{tenant} {prompt}")

    def request(self):
        tokens = [self.random.randrange(100, VOCABULARY) for _ in range(self.prompt)]
        body = {"model": "m", "prompt": tokens, "max_tokens": self.answer, "ignore_eos": True, "temperature": 0}
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), headers(self.tenant))
            response = connection.getresponse()
            text = response.read()
        if response.status not in (200, 429):
            raise RuntimeError(f"{response.status}: {text[:300]}")
        return time.perf_counter() - began, response.status


class Other(threading.Thread):
    """A client of another tenant. It is cut when the scenario is over."""

    def __init__(self, port, over, tenant, count, prompt, answer, goes_on):
        super().__init__(daemon=True)
        self.client, self.over, self.goes_on, self.first = Client(port, tenant, prompt, answer), over, goes_on, None
        self.client.random = random.Random(f"{tenant} {prompt} {id(self)}")

    def run(self):
        with contextlib.suppress(OSError, http.client.HTTPException, RuntimeError):
            while not self.over.is_set():
                took, status = self.client.request()
                self.first = self.first or took
                if not self.goes_on:
                    return
                if status == 429:
                    time.sleep(0.02)


def headers(tenant):
    return {"content-type": "application/json", "authorization": f"Bearer key-of-{tenant}"}


@contextlib.contextmanager
def daemon(args, binary, quotas):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(SHAPE | {"vocab_size": 49_152}))
        keys = [f'[[key]]\ntenant = "{t}"\nsha256 = "{hashlib.sha256(f"key-of-{t}".encode()).hexdigest()}"\n' for t in "abc"]
        keys = [key + (f"quota = {quotas[t]}\n" if t in quotas else "") for key, t in zip(keys, "abc")]
        (folder / "keys.toml").write_text("\n".join(keys))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [
            binary, "serve", "--model", folder / "model", "--load-format", "dummy", "--tokenizer", args.tokenizer, "--api-keys",
            folder / "keys.toml", "--port", str(port), "--threads", str(args.threads), "--device", "cpu", "--max-num-seqs", str(SEATS),
            "--max-queue", str(QUEUE), "--max-model-len", "32768", "--kv-cache-memory", "512MiB", "--served-model-name", "m",
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSHARE_")}
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([str(part) for part in command], stderr=log, stdout=log, env=environment)
        try:
            wait_until_ready(process, port, folder / "log")
            yield port
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_until_ready(process, port, log):
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the daemon has ended: {log.read_text()}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    return
        time.sleep(0.1)
    raise RuntimeError("the daemon does not get ready")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def markdown(args, results):
    names = [name for name, _ in args.binary]
    text = (
        f"B's requests beside other tenants, in times of the same requests alone; {SEATS} seats, {QUEUE} places in the queue, "
        f"{args.threads} thread, random weights, load of the machine {os.getloadavg()[0]:.1f}. At most {args.seconds:.0f} s a scenario: "
        "where few requests are counted, the last one may have waited longer. `refused` are answers 429; `A's own` is the time of A's "
        "prompt beside B's requests, in times of that alone.\n\n"
    )
    heads = [f"{name}: {what}" for name in names for what in ("requests", "p50", "p99", "refused", "A's own")]
    text += "| scenario | " + " | ".join(heads) + " |\n|---|" + "--:|" * len(heads) + "\n"
    for row in results:
        cells = []
        for name in names:
            found = row[name]
            ratio = lambda key: f"{found[key]:.2f}" if found.get(key) else "-"
            cells += [str(found["requests"]), ratio("p50"), ratio("p99"), str(found["refused"]), ratio("own")]
        text += f"| {row['scenario']} | " + " | ".join(cells) + " |\n"
    return text


if __name__ == "__main__":
    main()
