#!/usr/bin/env python3
"""What repair in decode costs between two tokens, beside the same requests without it (standard library only).

usage: decode_repair.py WORKLOAD.jsonl [URL]     with a server started with --kv-sharing span
Donors are computed in full, then six recipients are answered twice under each policy, one at a time, 96 tokens each."""
import json
import statistics
import sys
import time
import urllib.request

POLICIES = ["impact@0.15+drift", "impact@0.15+drift+decode=3/1", "impact@0.15+drift+decode=48/16"]
url = (sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000") + "/v1/chat/completions"


def send(messages, **options):
    body = json.dumps({"messages": messages, "temperature": 0, **options}).encode()
    return urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}))


def gaps(messages, policy):
    sharing = {"mode": "span", "store": False, "policy": policy}
    stream = send(messages, max_tokens=96, stream=True, ignore_eos=True, kv_sharing=sharing)
    times = [time.perf_counter() for line in stream if line.startswith(b"data: {")]
    return [later - earlier for earlier, later in zip(times[1:], times[2:])]


def main():
    with open(sys.argv[1], encoding="utf-8") as lines:
        records = {record["id"]: record for record in map(json.loads, lines)}
    recipients = [record for record in records.values() if record["donor_id"]][:6]
    found = {policy: [] for policy in POLICIES}
    for recipient in recipients:
        send(records[recipient["donor_id"]]["messages"], max_tokens=1, kv_sharing={"mode": "prefix"}).read()
        for _ in range(2):
            for policy in POLICIES:
                found[policy] += gaps(recipient["messages"], policy)
    base = statistics.mean(found[POLICIES[0]])
    print("| policy | gaps | mean, ms | p50 | p99 | mean, to the first |\n|---|--:|--:|--:|--:|--:|")
    for policy, times in found.items():
        mean, median = statistics.mean(times), statistics.median(times)
        p99 = sorted(times)[int(0.99 * len(times))]
        print(f"| `{policy}` | {len(times)} | {1e3 * mean:.2f} | {1e3 * median:.2f} | {1e3 * p99:.2f} | {mean / base:.2f} |")


main()
