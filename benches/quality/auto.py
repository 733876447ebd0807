#!/usr/bin/env python3
"""A mixed replay of several tenants in modes prefix, span and auto: what auto learns, what it reuses, and how its answers differ.

usage: auto.py --kvshare BINARY --model MODEL [--tenants 3] [--requests N] [--seconds S] [--markdown FILE] [--args "FLAGS OF serve"] W.jsonl...

Lines as of workloads.py. Groups of all workloads are shuffled by a fixed seed, donors before their recipients, and each tenant sends all of
them, in turn with the others. Each mode has a daemon of its own; the daemons run beside each other and get the same requests. After each
request the daemon of auto is given time to make its comparisons, at most `--patience` seconds, as pauses between requests would. After
`--seconds` all stop, and what all of them have answered counts.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import pathlib
import random
import shlex
import statistics
import tempfile
import time

from daemon import daemon

MODES = ("prefix", "span", "auto")
QUARTERS = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tenants", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--patience", type=float, default=2.0)
    parser.add_argument("--args", default="", help="further flags of serve")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("workload", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    stream = mixed(args)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = dict(zip(MODES, pool.map(lambda mode: replay(args, mode, stream), MODES)))
    num_answered = min(len(run["results"]) for run in runs.values())
    for run in runs.values():
        del run["results"][num_answered:]
    table = markdown(stream[:num_answered], runs)
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


def mixed(args):
    """(tenant, request) in the order they are sent."""
    groups = {}
    for path in args.workload:
        for line in path.read_text().splitlines():
            request = json.loads(line)
            groups.setdefault((path.name, request["workload"].split("/")[0], request["group"]), []).append(request)
    groups = [groups[name] for name in sorted(groups)]
    random.Random(7).shuffle(groups)
    requests = [request for group in groups for request in group]
    return [(tenant, request) for request in requests for tenant in range(args.tenants)][: args.requests]


def replay(args, mode, stream):
    results, end = [], time.monotonic() + args.seconds
    with tenants(args, mode) as port:
        for tenant, request in stream:
            if time.monotonic() > end:
                break
            body = {"model": "m", "messages": request["messages"], "temperature": 0, "stream": True,
                    "max_tokens": min(args.max_tokens, request["max_tokens"]), "stream_options": {"include_usage": True}}
            results.append(ask(port, key(tenant), body))
            if mode == "auto":
                wait_for_comparisons(port, args.patience)
        classes = [json.loads(get(port, "/v1/kv/classes", key(tenant)))["data"] for tenant in range(args.tenants)] if mode == "auto" else []
    return {"results": results, "classes": classes}


def ask(port, key, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began, first, text, usage = time.perf_counter(), None, "", None
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json", "authorization": f"Bearer {key}"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read()[:300]}")
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            content = choice["delta"].get("content") or ""
            first = first or (time.perf_counter() - began if content or choice["finish_reason"] else None)
            text += content
    sharing = usage["kv_sharing"]
    moved = sharing["span_tokens"] + sharing["continued_tokens"]
    computed = usage["prompt_tokens"] - moved - sharing["prefix_tokens"]
    return {"ttft": first, "computed": computed, "moved": moved, "reason": sharing["reason"], "text": text}


def get(port, path, key):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"authorization": f"Bearer {key}"})
    return connection.getresponse().read().decode()


def wait_for_comparisons(port, patience):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        lines = get(port, "/metrics", "").splitlines()
        if all(float(line.split()[-1]) == 0 for line in lines if line.startswith("kvshare_verification_pending{")):
            return
        time.sleep(0.005)


def key(tenant):
    return f"key-of-tenant-{tenant}"


@contextlib.contextmanager
def tenants(args, mode):
    """A daemon that knows the tenants' keys; its port."""
    with tempfile.TemporaryDirectory() as folder:
        keys = pathlib.Path(folder) / "keys.toml"
        entry = '[[key]]\ntenant = "t{}"\nsha256 = "{}"\n'
        keys.write_text("".join(entry.format(t, hashlib.sha256(key(t).encode()).hexdigest()) for t in range(args.tenants)))
        flags = ["--api-keys", str(keys), "--verify-idle", "1ms", *shlex.split(args.args)]
        with daemon(args.kvshare, args.model, mode, flags) as url:
            yield int(url.rpartition(":")[2])


def markdown(stream, runs):
    text = "| part of the replay | requests | TTFT p50 prefix / span / auto (ms) | auto to span | rows computed prefix / span / auto | moved by auto of what span moves |\n"
    text += "|---|--:|--:|--:|--:|--:|\n"
    size = -(-len(stream) // QUARTERS)
    for quarter in range(QUARTERS):
        part = slice(quarter * size, (quarter + 1) * size)
        rows = {mode: runs[mode]["results"][part] for mode in MODES}
        p50 = {mode: statistics.median(row["ttft"] for row in rows[mode]) * 1e3 for mode in MODES}
        computed = {mode: sum(row["computed"] for row in rows[mode]) for mode in MODES}
        moved = {mode: sum(row["moved"] for row in rows[mode]) for mode in MODES}
        text += (f"| {quarter + 1} of {QUARTERS} | {len(rows['auto'])} | {' / '.join(f'{p50[mode]:.1f}' for mode in MODES)} | "
                 f"{p50['auto'] / p50['span']:.2f} | {' / '.join(str(computed[mode]) for mode in MODES)} | "
                 f"{moved['auto'] / max(moved['span'], 1):.0%} |\n")
    exact = [row["text"] for row in runs["prefix"]["results"]]
    text += "\n| mode | answers over moved KV | of these equal to those of prefix | unproven |\n|---|--:|--:|--:|\n"
    for mode in MODES[1:]:
        over = [(row["text"], other) for row, other in zip(runs[mode]["results"], exact) if row["moved"]]
        same = sum(a == b for a, b in over) / max(len(over), 1)
        unproven = sum(row["reason"] == "unproven" for row in runs[mode]["results"])
        text += f"| {mode} | {len(over)} | {same:.1%} | {unproven} |\n"
    differ = sum(row["text"] != other for row, other in zip(runs["auto"]["results"], exact) if not row["moved"])
    text += f"\nAnswers of auto without moved KV that differ from those of prefix: {differ}.\n"
    text += "\n| tenant | classes | open | opened | closed | compared |\n|---|--:|--:|--:|--:|--:|\n"
    for tenant, classes in enumerate(runs["auto"]["classes"]):
        total = lambda name: sum(found[name] for found in classes)
        is_open = sum(found["state"] == "open" for found in classes)
        text += f"| {tenant} | {len(classes)} | {is_open} | {total('opened')} | {total('closed')} | {total('verified')} |\n"
    return text


if __name__ == "__main__":
    main()
