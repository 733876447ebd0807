#!/usr/bin/env python3
"""A tiny BERT with random weights, and the embeddings of some texts as transformers computes them.

usage: make_bert.py --out ../fixtures/tiny/bert
"""

import argparse
import json
import pathlib

import tokenizers
import torch
import transformers

WORDS = "the a river bridge keeper wrote crossed old town ##s ##ly quick slow and".split()
TEXTS = ["the keeper crossed the old bridge", "quickly", "a river and a town " * 80]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.normalizer = tokenizers.normalizers.BertNormalizer()
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.save(str(out / "tokenizer.json"))
    config = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=24, max_position_embeddings=256, initializer_range=0.5)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(out)
    (out / "expected.json").write_text(json.dumps([{"text": text, "embedding": embed(model, words, text)} for text in TEXTS], indent=1) + "\n")


def embed(model, words, text):
    """Windows of 254 tokens between [CLS] and [SEP], their mean hidden states at length 1, weighted by tokens, at length 1."""
    ids, total = words.encode(text, add_special_tokens=False).ids, 0
    for at in range(0, len(ids), 254):
        window = ids[at : at + 254]
        with torch.no_grad():
            mean = model(torch.tensor([[2, *window, 3]])).last_hidden_state[0].mean(0)
        total = total + mean / mean.norm() * len(window)
    return (total / total.norm()).tolist()


main()
