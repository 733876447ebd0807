#!/usr/bin/env python3
"""Requests that show where shared KV would be wrong rather than imprecise, one JSON object a line, for `kvshare eval`.

usage: suites.py DATA_DIR edit|flip|canary|governed|gsm8k|all [N] > SUITE.jsonl

  edit    one number of a document changes; asked for it, and for what follows from it 0, 250 or 1500 tokens further on
  flip    the same document behind the opposite instruction: JSON or prose, French or English, one sentence or several
  canary  a secret stands in front of a public document; another tenant asks for it behind the same document
  governed  equal lines under something that changed: columns of a table swapped, with its rows in place or in another order; the
          currency of a list; a "not" in a rule; the speaker of a sentence. All at the beginning of the paragraph, and far in it
  gsm8k   the same worked examples in another order before another problem

N is the number of documents or problems (default 8). DATA_DIR holds longcontext_presidential.jsonl (id, text),
longcontext_needles.jsonl (id, needle, question, answer) and gsm8k.jsonl (id, question, answer, final).
Every choice follows from a hash of a fixed text, so the same files give the same bytes. Standard library only.
"""

import hashlib
import json
import os
import re
import sys

CHARS_PER_TOKEN = 4  # of English text, roughly: distances need no more
EDIT_DISTANCES = (0, 250, 1500)
EDIT_CHARS = 12_000
FLIP_CHARS = 16_000
NUM_SHOTS = 8


def digest(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def shuffled(items, seed, key=lambda item: item["id"]):
    return sorted(items, key=lambda item: digest(f"{seed}|{key(item)}"))


def load(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def documents(folder, seed, num_chars):
    """Beginnings of long texts, cut at the end of a line or a sentence."""
    for row in shuffled(load(folder, "longcontext_presidential.jsonl"), seed):
        if len(row["text"]) >= num_chars:
            text = row["text"][:num_chars]
            yield text[: max(text.rfind("\n"), text.rfind(". ") + 1)]


def record(suite, group, part, system, user, donor=None, **fields):
    """`part` ends the id; a letter and a number there only count, anything else is a kind of its own in the report."""
    row = {
        "id": f"{suite}/{group}/{part}",
        "workload": suite,
        "group": str(group),
        "donor_id": f"{suite}/{group}/{donor}" if donor else None,
        "expect": "reuse" if donor else "seed",
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "max_tokens": 48,
        "metric": "vs_full",
        "reference": [],
    }
    return row | fields


def edit(folder, n):
    needles = [row for row in shuffled(load(folder, "longcontext_needles.jsonl"), "edit") if "door code" in row["needle"]]
    for i, (text, needle) in enumerate(zip(documents(folder, "edit", EDIT_CHARS), needles[:n])):
        yield from edit_one(i, text.split("\n"), needle)


def edit_one(i, lines, needle):
    # One side of 50,000 before the edit, the other side after it, so that what follows from the number changes too.
    old = needle["answer"]
    number = digest("edit" + needle["id"])
    new = str(number % 40_000 + (50_001 if int(old) <= 50_000 else 10_000))
    color = lambda code: "green" if int(code) > 50_000 else "red"
    rule = "Archive doors whose code is above 50000 are painted green; all other archive doors are painted red."
    place = re.search(r"for the (.+? office)", needle["needle"]).group(1)
    system = "Answer from the document only. Reply with the number or the word only."
    asks = {"direct": needle["question"], "derived": f"By its code, is the archive door of the {place} painted green or red?"}

    def document(code, distance):
        start = len(lines) // 5
        between = start
        num_chars = 0
        while num_chars < distance * CHARS_PER_TOKEN and between < len(lines):
            num_chars += len(lines[between]) + 1
            between += 1
        fact = needle["needle"].replace(old, code)
        return "\n".join(lines[:start] + [fact] + lines[start:between] + [rule] + lines[between:])

    for distance in EDIT_DISTANCES:
        user = lambda code, ask: f"{document(code, distance)}\n\nQuestion: {ask}"
        common = {"metric": "contains", "max_tokens": 16}
        yield record("edit", i, f"donor{distance}", system, user(old, asks["direct"]), reference=[old], **common)
        yield record("edit", i, f"direct{distance}", system, user(new, asks["direct"]), f"donor{distance}",
                     reference=[new], stale_reference=[old], **common)
        yield record("edit", i, f"derived{distance}", system, user(new, asks["derived"]), f"donor{distance}",
                     reference=[color(new)], stale_reference=[color(old)], **common)


FORMS = {
    "json": 'Reply with one JSON object with the keys "topic" and "concerns" and with nothing else.',
    "prose": "Reply in plain prose. Do not use JSON, lists or headings.",
    "french": "Réponds en français.",
    "english": "Reply in English.",
    "one_sentence": "Reply with exactly one sentence.",
    "sentences": "Reply with four or more short sentences.",
}
OPPOSITES = (("json", "prose"), ("french", "english"), ("one_sentence", "sentences"))


def flip(folder, n):
    for i, (text, _) in enumerate(zip(documents(folder, "flip", FLIP_CHARS), range(n))):
        for pair in OPPOSITES:
            for before, after in (pair, pair[::-1]):
                def ask(form):
                    return f"You read speeches for a newsroom. {FORMS[form]}", f"{text}\n\nWhat is this speech about?"
                common = {"metric": "format", "max_tokens": 96}
                yield record("flip", i, f"donor_{before}", *ask(before), reference=[before], **common)
                yield record("flip", i, f"to_{after}", *ask(after), f"donor_{before}", reference=[after], **common)


def canary(folder, n):
    for i, (text, _) in enumerate(zip(documents(folder, "canary", EDIT_CHARS), range(n))):
        secret = f"KX-{digest(f'canary{i}') % 10**8:08d}"
        system = "You answer questions about a public document."
        private = f"{system} Note for this customer only: the recovery code is {secret}. Keep the recovery code {secret} ready."
        ask = lambda question: f"{text}\n\n{question}"
        yield record("canary", i, "donor", private, ask("Which recovery code was given before the document?"), tenant="a")
        yield record("canary", i, "other_tenant", system, ask("Which recovery code was given before the document?"), "donor",
                     tenant="b", expect="no_reuse", stale_reference=[secret])


ITEMS = ["apples", "bolts", "candles", "drums", "envelopes", "flutes", "gloves", "hammers", "irons", "jars", "kettles", "lamps"]
PEOPLE = ["Anna", "Bert", "Clara", "David", "Emma", "Felix"]
SYSTEM = "Answer from the text only, with one word or number."


def governed(folder, n):
    """Cases of five kinds, `n` of each."""
    filler = [line for text, _ in zip(documents(folder, "governed", EDIT_CHARS), range(1)) for line in text.split("\n") if len(line) > 80] or ["The club meets in town."]
    for i in range(n):
        number = lambda item, column: digest(f"governed{i}{item}{column}") % 880 + 11
        asked = ITEMS[digest(f"asked{i}") % len(ITEMS)]
        rows = [f"{item} | {number(item, 0)} | {number(item, 1)} | shelf {number(item, 2) % 40} in hall {'ABCD'[number(item, 3) % 4]}" for item in ITEMS]
        table = lambda header, items: "\n".join([header, *items])
        ask = f"What is the price of {asked}?"
        for part, items in (("columns", rows), ("columns_permuted", shuffled(rows, f"rows{i}", key=str))):
            yield from pair(i, part, table("item | price | weight | place", rows), table("item | weight | price | place", items), ask,
                            str(number(asked, 1)), str(number(asked, 0)))
        prices = "\n".join(f"{item}: {number(item, 0)}, sold by the dozen at the counter of hall {'ABCD'[number(item, 3) % 4]}" for item in ITEMS)
        units = ("euros", "dollars") if i % 2 else ("dollars", "euros")
        yield from pair(i, "unit", *(f"All prices are in {unit}.\n{prices}" for unit in units),
                        f"In which currency is the price of {asked}?", units[1], units[0])
        before, after = filler[2 * i % len(filler)], filler[(2 * i + 1) % len(filler)]
        rule = lambda may: f"{before} Members {may} bring guests to the evening meetings of the club, which begin at seven. {after}"
        says = ("may", "may not") if i % 2 else ("may not", "may")
        yield from pair(i, "negation", *map(rule, says), "May members bring guests to the evening meetings? Answer yes or no.",
                        *("no" if say == "may not" else "yes" for say in says[::-1]))
        who = shuffled(PEOPLE, f"who{i}", key=str)
        talk = lambda speaker: f"{who[2]}: {before}\n{speaker}: I will pay the invoice for the {asked} on Friday, as we agreed last week at lunch.\n{who[3]}: {after}"
        yield from pair(i, "speaker", talk(who[0]), talk(who[1]), f"Who will pay the invoice for the {asked}?", who[1], who[0])


def pair(i, part, old, new, ask, reference, stale):
    """A text, and the same with what governs the answer changed."""
    common = {"metric": "contains", "max_tokens": 8}
    yield record("governed", i, f"donor_{part}", SYSTEM, f"{old}\n\nQuestion: {ask}", reference=[stale], **common)
    yield record("governed", i, part, SYSTEM, f"{new}\n\nQuestion: {ask}", f"donor_{part}", reference=[reference],
                 stale_reference=[stale], **common)


def gsm8k(folder, n):
    rows = shuffled(load(folder, "gsm8k.jsonl"), "gsm8k")
    shots, problems = rows[: 5 * NUM_SHOTS], rows[5 * NUM_SHOTS :]
    worked = lambda row: re.sub(r"<<.*?>>", "", row["answer"]).replace("####", "Answer:")
    system = "Solve the last problem as in the examples. End with a line of the form \"Answer: NUMBER\"."
    for i in range(min(n, len(problems) // 2)):
        examples = shots[NUM_SHOTS * (i % 5) :][:NUM_SHOTS]
        for part, donor in (("s0", None), ("s1", "s0")):
            problem = problems[2 * i + (donor is not None)]
            ordered = shuffled(examples, f"gsm8k{i}{part}")
            text = "\n\n".join(f"Problem: {row['question']}\n{worked(row)}" for row in ordered)
            yield record("gsm8k", i, part, system, f"{text}\n\nProblem: {problem['question']}", donor,
                         metric="final_number", reference=[problem["final"].replace(",", "")], max_tokens=256)


SUITES = {"edit": edit, "flip": flip, "canary": canary, "governed": governed, "gsm8k": gsm8k}


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in (*SUITES, "all"):
        sys.exit(__doc__)
    folder, name = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) == 4 else 8
    for suite in SUITES if name == "all" else [name]:
        for row in SUITES[suite](folder, n):
            print(json.dumps(row, ensure_ascii=True))


if __name__ == "__main__":
    main()
