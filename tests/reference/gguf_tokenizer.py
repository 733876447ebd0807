"""A tokenizer of others made from the vocabulary inside a GGUF file.

Hugging Face's own GGUF conversion ignores `tokenizer.ggml.pre`, so the pre-tokenizer is set here, as the tokenizer.json published with
each model has it. Files with another `pre` are refused.
"""

import re

from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# Published with Qwen2 in its tokenizer.json.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pre_tokenizer(pre):
    """The published pair (normalizer or None, pre-tokenizer) for `tokenizer.ggml.pre`."""
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if pre == "qwen2":
        words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False)
        return normalizers.NFC(), pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise SystemExit(f"no published pre-tokenizer is known here for tokenizer.ggml.pre = {pre!r}")


class SentencePiece:
    """The vocabulary of a GGUF file in Google's implementation, called as Hugging Face's tokenizers are."""

    def __init__(self, field):
        model = sentencepiece_model_pb2.ModelProto()
        model.trainer_spec.model_type = model.trainer_spec.BPE
        model.trainer_spec.byte_fallback = True
        model.normalizer_spec.name = "identity"
        model.normalizer_spec.add_dummy_prefix = field("ggml.add_space_prefix") is not False
        model.normalizer_spec.remove_extra_whitespaces = False
        # GGUF numbers the kinds of tokens as SentencePiece does, but spells spaces of user-defined ones as such.
        for text, score, kind in zip(field("ggml.tokens"), field("ggml.scores"), field("ggml.token_type")):
            model.pieces.add(piece=text.replace(" ", "\u2581"), score=score, type=kind)
        self.processor = SentencePieceProcessor(model_proto=model.SerializeToString())
        self.bos = field("ggml.bos_token_id") if field("ggml.add_bos_token") else None

    def __call__(self, text, add_special_tokens=True):
        ids = self.processor.encode(text)
        return {"input_ids": [self.bos] * (add_special_tokens and self.bos is not None) + ids}


def load_tokenizer(path):
    """A tokenizer with the vocabulary of the GGUF file at `path`: `PreTrainedTokenizerFast` with its merges, special tokens and chat
    template for byte-level BPE, `SentencePiece` otherwise."""
    fields = GGUFReader(path).fields

    def field(name):
        entry = fields.get(f"tokenizer.{name}")
        return None if entry is None else entry.contents()

    if field("ggml.model") == "llama":
        return SentencePiece(field)
    if field("ggml.model") != "gpt2":
        raise SystemExit(f"{path}: vocabularies of model {field('ggml.model')!r} are not handled")
    tokens, types = field("ggml.tokens"), field("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    normalizer, words = pre_tokenizer(field("ggml.pre"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    for i, kind in enumerate(types):
        if kind in (CONTROL, USER_DEFINED) and not re.fullmatch(r"\[PAD\d+\]", tokens[i]):
            tokenizer.add_tokens([AddedToken(tokens[i], special=kind == CONTROL, normalized=False)])
    named = {}
    for name in ("bos", "eos", "padding"):
        token_id = field(f"ggml.{name}_token_id")
        if token_id is not None:
            named[{"padding": "pad"}.get(name, name) + "_token"] = tokens[token_id]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    fast.chat_template = field("chat_template")
    return fast
