#!/usr/bin/env python3
"""Decode throughput of a batch of which a part is constrained by a JSON schema, beside the same batch without constraints.

usage: structured.py --kvshare BINARY --model MODEL [--concurrency 64] [--tokens 128] [--rounds 5] [--markdown FILE] [--args "FLAGS OF serve"]

Each round sends as many requests at once as `--concurrency` says, each with a short prompt and exactly `--tokens` tokens (the schema asks for more than
fit): without constraints, with half of them constrained, and with all, in turns. The first round is not counted.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import shlex
import statistics
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "quality"))
sys.path.append(str(pathlib.Path(__file__).resolve().parent))
from daemon import daemon

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
                   "job": {"enum": ["baker", "keeper", "mason"]}, "notes": {"type": "string", "maxLength": 60}},
    "required": ["name", "age", "job", "notes"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 100}
SHARES = (0.0, 0.5, 1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--args", default="", help="further flags of serve")
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    rates = {share: [] for share in SHARES}
    with daemon(args.kvshare, args.model, "prefix", shlex.split(args.args)) as url, concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
        for number in range(args.rounds + 1):
            for share in SHARES:
                rate = round_of(pool, int(url.rpartition(":")[2]), args, share, number)
                if number:
                    rates[share].append(rate)
    table = "| requests at once | constrained | tokens/s, median | least and most | share of free |\n|--:|--:|--:|--:|--:|\n"
    free = statistics.median(rates[0.0])
    for share, found in rates.items():
        median = statistics.median(found)
        table += f"| {args.concurrency} | {share:.0%} | {median:,.0f} | {min(found):,.0f} to {max(found):,.0f} | {median / free:.3f} |\n"
    print(table, end="")
    if args.markdown:
        args.markdown.write_text(table)


def round_of(pool, port, args, share, number):
    """Tokens per second of all requests together."""
    bodies = [body(idx, args, idx < share * args.concurrency, number) for idx in range(args.concurrency)]
    began = time.perf_counter()
    num_tokens = sum(pool.map(lambda one: ask(port, one), bodies))
    seconds = time.perf_counter() - began
    if num_tokens != args.concurrency * args.tokens:
        raise SystemExit(f"{num_tokens} tokens instead of {args.concurrency * args.tokens}: an answer has ended early")
    return num_tokens / seconds


def body(idx, args, is_constrained, number):
    request = {"model": "m", "messages": [{"role": "user", "content": f"{idx}: list a hundred people of a village as JSON."}], "temperature": 0.7,
               "seed": 1000 * number + idx, "max_tokens": args.tokens, "ignore_eos": True}
    return {**request, "guided_json": SCHEMA} if is_constrained else request


def ask(port, request):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(request), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        raise SystemExit(f"{response.status}: {answer}")
    return answer["usage"]["completion_tokens"]


if __name__ == "__main__":
    main()
