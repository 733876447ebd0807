#!/usr/bin/env python3
"""Requests that flood the index of spans: one template and one guideline, behind what customers say.
usage: flood.py DATA_DIR > flood.jsonl
20 intents of banking77, 10 sayings each, in an order made by sha256; all prompts end with the same guideline of some hundred tokens."""
import hashlib, json, os, sys

def lines(name):
    with open(os.path.join(sys.argv[1], name), encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]

def key(text):
    return hashlib.sha256(text.encode()).hexdigest()

guides = sorted(lines("support_abcd_guidelines.jsonl"), key=lambda guide: key(guide["id"]))[:3]
guideline = "\n".join(
    " ".join(guide["instructions"]) + "\n" + "\n".join(f"- {action['button']}: {action['text']}" for action in guide["actions"])
    for guide in guides
)
by_intent = {}
for saying in lines("intents_banking77.jsonl"):
    by_intent.setdefault(saying["intent"], []).append(saying)
sayings = [s for intent in sorted(by_intent, key=key)[:20] for s in sorted(by_intent[intent], key=lambda s: key(s["id"]))[:10]]
for saying in sorted(sayings, key=lambda s: key("order" + s["id"])):
    user = f"A customer says: {saying['text']}\n\nGuideline:\n\n{guideline}\n\nWhat do you answer?"
    print(json.dumps({"id": saying["id"], "workload": "flood", "expect": "reuse", "max_tokens": 32,
                      "messages": [{"role": "system", "content": "You answer customers of a bank."}, {"role": "user", "content": user}]}))
