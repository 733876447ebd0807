#!/usr/bin/env python3
"""AUC of the measured deviations as signals of a request whose answer over moved KV is far from full computation.

usage: auc.py EVAL.json...

EVAL.json is of `kvshare eval --json` with a policy that always takes the second look and never acts on it, such as
impact@0.25+drift+sample=8+deep_bail_out=1000000. Only hits that were looked at count.
"""

import json
import pathlib
import sys

BOUNDS = (0.05, 0.02)


def auc(signal, is_bad):
    """Probability that a bad request has the larger signal; ties count half."""
    bad = [value for value, flag in zip(signal, is_bad) if flag]
    good = [value for value, flag in zip(signal, is_bad) if not flag]
    wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    return wins / (len(bad) * len(good)) if bad and good else float("nan")


def main():
    print("| file | hits looked at | KL > bound | of them | at a quarter of the depth | at layer 1 |\n|---|--:|--:|--:|--:|--:|")
    for path in map(pathlib.Path, sys.argv[1:]):
        requests = json.loads(path.read_text())["requests"]
        looked_at = [r for r in requests if r["is_hit"] and r["deep_deviation"] is not None and "+deviation=" not in r["policy"]]
        kls = [sum(r["kl"]) / len(r["kl"]) for r in looked_at]
        for bound in BOUNDS:
            is_bad = [kl > bound for kl in kls]
            deep = auc([r["deep_deviation"] for r in looked_at], is_bad)
            shallow = auc([r["deviation"] or 0.0 for r in looked_at], is_bad)
            print(f"| {path.stem} | {len(kls)} | {bound} | {sum(is_bad)} | {deep:.3f} | {shallow:.3f} |")


if __name__ == "__main__":
    main()
