#!/usr/bin/env python3
"""Embeddings of some texts by the tiny BERT, as sentence-transformers computes them with each pooling and length.

usage: make_sentences.py --model ../fixtures/tiny/bert        (writes sentences.json there)
"""

import argparse
import json
import pathlib
import tempfile

import sentence_transformers
import transformers
from sentence_transformers.models import Normalize, Pooling, Transformer

TEXTS = ["the keeper crossed the old bridge", "quickly", "a slow town and the river wrote", "a river and a town " * 80]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    folder = parser.parse_args().model
    cases = []
    with tempfile.TemporaryDirectory() as copy:
        words = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(framed(folder, copy)), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")
        words.save_pretrained(copy)
        for name in ["config.json", "model.safetensors"]:
            (pathlib.Path(copy) / name).write_bytes((folder / name).read_bytes())
        for mode in ["mean", "cls", "max"]:
            for length in [8, 256]:
                transformer = Transformer(copy, max_seq_length=length)
                encoder = sentence_transformers.SentenceTransformer(
                    modules=[transformer, Pooling(16, pooling_mode=mode), Normalize()], device="cpu")
                embeddings = encoder.encode(TEXTS).tolist()
                cases.append({"pooling": mode, "max_seq_length": length, "texts": TEXTS, "embeddings": embeddings})
    (folder / "sentences.json").write_text(json.dumps(cases, indent=1) + "\n")


def framed(folder, copy):
    """The tokenizer with the tokens around a text, which the tiny one does not put there."""
    words = json.loads((folder / "tokenizer.json").read_text())
    piece = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    words["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")],
        "pair": [], "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in [("[CLS]", 2), ("[SEP]", 3)]}}
    words["post_processor"]["pair"] = words["post_processor"]["single"] + [{"Sequence": {"id": "B", "type_id": 1}}]
    path = pathlib.Path(copy) / "framed.json"
    path.write_text(json.dumps(words))
    return path


main()
