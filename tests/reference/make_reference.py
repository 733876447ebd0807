#!/usr/bin/env python3
"""Reference log probabilities of a GGUF model, from Hugging Face transformers in float32 on a CPU.

usage: make_reference.py --data DIR --out DIR MODEL.gguf [MODEL.gguf ...]

DIR of --data holds the JSON Lines files named in DOCUMENTS. Each document is its own sequence; its ids are stored, so that a reader
needs no tokenizer. The model is fed the true tokens (teacher forcing), and for every position but the last the 32 likeliest next tokens
are stored with their log probabilities, and the log probability of the token that really follows. A reader computes KL divergence over
the partition {the 32 tokens, all the rest}.

Output: one file OUT/<stem of the GGUF file>.reference, little endian, without padding:

    magic       8 bytes "KVSREF01"
    version     u32     1
    vocab_size  u32     width of the model's logits
    num_seqs    u32
    lengths     u32 x num_seqs
    ids         u32 x sum(lengths), sequence after sequence
    positions   for each sequence, for each position 0 .. length - 2:
        top     32 x (token id u32, log probability f32), likeliest first
        next    f32, log probability of the token at the following position

Versions are pinned in requirements.txt: python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
"""

import argparse
import json
import pathlib
import struct

import numpy
import torch
from transformers import AutoModelForCausalLM

from gguf_tokenizer import load_tokenizer

TOP = 32

# File, field that holds the text, record, tokens to keep. Prose, speech, code, rules, arithmetic: each from another file.
DOCUMENTS = (
    ("longcontext_presidential.jsonl", "text", 0, 680),
    ("longcontext_qmsum.jsonl", "transcript", 0, 400),
    ("humaneval.jsonl", ("prompt", "canonical_solution"), 0, 300),
    ("support_tau2_corpus.jsonl", "text", 0, 320),
    ("gsm8k.jsonl", ("question", "answer"), 0, 256),
    ("conversations_mtbench101.jsonl", "messages", 0, 256),
)


def text_of(record, field):
    """The text in `field`, speaker by speaker where it is a conversation."""
    if isinstance(field, tuple):
        return "".join(record[name] for name in field)
    value = record[field]
    if isinstance(value, str):
        return value
    return "\n".join(f"{turn.get('speaker') or turn['role']}: {turn.get('text') or turn['content']}" for turn in value)


def document(data, tokenizer, name, field, first, num_tokens):
    """The first `num_tokens` ids of the records of `name` from `first` on, joined by blank lines."""
    records = [json.loads(line) for line in (data / name).read_text(encoding="utf-8").split("\n") if line]
    text = ""
    for record in records[first:]:
        text += text_of(record, field).strip() + "\n\n"
        # A model that was trained with a token at the beginning gets it.
        ids = tokenizer(text)["input_ids"]
        if len(ids) > num_tokens:
            return ids[:num_tokens]
    raise SystemExit(f"{name} is shorter than {num_tokens} tokens")


@torch.inference_mode()
def score(model, ids):
    """(top ids, top log probabilities, log probability of the following token) for all positions but the last."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    top = log_probs.topk(TOP, dim=-1)
    following = log_probs.gather(1, torch.tensor(ids[1:]).unsqueeze(1))[:, 0]
    return top.indices.numpy(), top.values.numpy(), following.numpy()


def encode(vocab_size, sequences, scores):
    """The bytes described at the head of this file."""
    parts = [b"KVSREF01", struct.pack("<III", 1, vocab_size, len(sequences))]
    parts.append(numpy.array([len(ids) for ids in sequences], "<u4").tobytes())
    parts += [numpy.array(ids, "<u4").tobytes() for ids in sequences]
    position = numpy.dtype([("top", [("id", "<u4"), ("log_prob", "<f4")], TOP), ("next", "<f4")])
    for top_ids, top_log_probs, following in scores:
        table = numpy.zeros(len(following), position)
        table["top"]["id"], table["top"]["log_prob"], table["next"] = top_ids, top_log_probs, following
        parts.append(table.tobytes())
    return b"".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.models:
        tokenizer = load_tokenizer(path)
        sequences = [document(args.data, tokenizer, *entry) for entry in DOCUMENTS]
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        scores = [score(model, ids) for ids in sequences]
        out = args.out / f"{path.stem}.reference"
        out.write_bytes(encode(model.config.vocab_size, sequences, scores))
        following = numpy.concatenate([entry[2] for entry in scores])
        print(f"{out}: {len(following)} positions, {out.stat().st_size} bytes, perplexity {numpy.exp(-following.mean()):.2f}")


if __name__ == "__main__":
    main()
