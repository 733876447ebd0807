#!/usr/bin/env python3
"""Rows computed for each turn of a conversation about a document that another user has read: mode span beside mode prefix.

usage: turns.py --kvshare BINARY --model MODEL [--markdown FILE] [--args "FLAGS OF serve"] WORKLOAD.jsonl

The workload is w12 of formats.py: lines with `group`, `session`, `turn` and `messages`, sent in order to a fresh daemon a mode. Rows are
prompt tokens whose KV was neither found nor moved, by `usage`.
"""

import argparse
import collections
import json
import pathlib
import shlex
import urllib.request

from daemon import daemon


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--args", default="", help="further flags of serve")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("workload", type=pathlib.Path)
    args = parser.parse_args()
    requests = [json.loads(line) for line in args.workload.read_text().splitlines()]
    rows = {mode: computed(args, mode, requests) for mode in ("prefix", "span")}
    table = markdown(rows)
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)


def computed(args, mode, requests):
    """Rows by turn, the seed being turn 0, over all conversations."""
    turns = collections.Counter()
    with daemon(args.kvshare, args.model, mode, shlex.split(args.args)) as url:
        for request in requests:
            body = {"messages": request["messages"], "max_tokens": request["max_tokens"], "temperature": 0, "model": "m"}
            call = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(call, timeout=600) as response:
                usage = json.load(response)["usage"]
            found = sum(usage["kv_sharing"].get(name, 0) for name in ("prefix_tokens", "continued_tokens", "span_tokens"))
            turns[request["turn"] if request["donor_id"] else 0] += usage["prompt_tokens"] - found
    return turns


def markdown(rows):
    text = "| turn | prefix: rows | span: rows | span to prefix |\n|---|--:|--:|--:|\n"
    line = lambda name, prefix, span: f"| {name} | {prefix} | {span} | {span / max(prefix, 1):.3f} |\n"
    turns = sorted(turn for turn in rows["prefix"] if turn > 0)
    text += "".join(line(turn, rows["prefix"][turn], rows["span"][turn]) for turn in turns)
    return text + line("all", *(sum(rows[mode][turn] for turn in turns) for mode in ("prefix", "span")))


if __name__ == "__main__":
    main()
