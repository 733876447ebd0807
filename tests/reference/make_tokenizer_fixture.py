#!/usr/bin/env python3
"""Texts with the ids that Hugging Face gives them, and rendered chats, for the vocabulary inside a GGUF file.

usage: make_tokenizer_fixture.py --out DIR MODEL.gguf [MODEL.gguf ...]

Writes DIR/<stem of the GGUF file>.json:

    texts  [{"text", "ids"}]                                          without tokens added around the text
    chats  [{"messages", "add_generation_prompt", "rendered", "ids"}] through the chat template of the GGUF file

Versions are pinned in requirements.txt.
"""

import argparse
import json
import pathlib

from gguf_tokenizer import load_tokenizer

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\tindented",
    "trailing spaces   ",
    "   leading spaces",
    "a  b   c    d     e",
    "line one\nline two\r\nline three\r\n\r\n",
    " \n \n  \n",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said we'll go; he'd rather not, it's late, you're tired.",
    "I'M SURE THEY'VE SAID WE'LL GO; HE'D RATHER NOT.",
    "don\u2019t use \u201ccurly\u201d quotes\u2026 or en\u2013dashes and em\u2014dashes",
    "0 1 12 123 1234 12345 123456 1234567890",
    "3.14159, -2.5e-10, 1,000,000.00 and 0x7fff",
    "Date: 2024-02-29T23:59:60Z, tel. +49 (0)30 1234-5678",
    "v1.2.3-rc.4+build.567",
    "\u00bd \u00b2\u00b3 \u2460 \u0663\u0664 \u0967\u0968 \u216b",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}",
    "def f(x):\n    if x <= 1:\n        return 1\n    return x * f(x - 1)\n",
    "fn main() -> Result<(), Box<dyn Error>> { println!(\"{:?}\", vec![1u8; 3]); Ok(()) }",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.name LIKE '%x_%' GROUP BY 1;",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "<div class=\"x\">&amp;&lt;p&gt;</div><!-- comment -->",
    "https://example.com/a/b?c=d&e=%20f#g",
    "user.name+tag@example.co.uk",
    "$x^2 + \\frac{a}{b} = \\sqrt{2}$",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "----------------------------------------------------------------",
    "!!!???...,,,;;;:::",
    "(([[{{<<>>}}]]))",
    "#!/usr/bin/env bash\nset -euo pipefail\necho \"$@\" | sed 's/a/b/g' > /dev/null 2>&1\n",
    "Antidisestablishmentarianism floccinaucinihilipilification",
    "Stra\u00dfe, \u00c4pfel, \u00f6de, \u00fcber: Gr\u00fc\u00dfe aus M\u00fcnchen!",
    "\u00bfD\u00f3nde est\u00e1 la biblioteca? \u00a1Ni\u00f1o, ma\u00f1ana!",
    "L'\u00e9t\u00e9, o\u00f9 \u00eates-vous all\u00e9s? \u00c7a va, na\u00efve c\u0153ur.",
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439, \u043c\u0438\u0440! \u041a\u0430\u043a \u0434\u0435\u043b\u0430?",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u7684\u5929\u6c14\u5f88\u597d\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3068\u6f22\u5b57",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "Xin ch\u00e0o th\u1ebf gi\u1edbi",
    "Composed caf\u00e9, decomposed cafe\u0301, A\u030angstro\u0308m",
    "\U0001f600 \U0001f680\U0001f525 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44d\U0001f3fd",
    "tab\tnbsp\u00a0thin\u2009ideographic\u3000zero\u200bwidth",
    "bell\u0007 escape\u001b[31mred\u001b[0m delete\u007f",
    "\ufeffbyte order mark",
    "private \ue000 and rare \U00010348 \U0001d54f",
    "<|im_start|>user\nhi<|im_end|>\n",
    "text<|endoftext|>text",
    "almost <|im_start and |im_end|> special",
    "Question: What is 17 * 23?\n\nAnswer: 391.\n\n1. First\n2. Second\n   - nested\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "mixed \u4e2d\u6587 and English \u0438 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 123\u5e74 45%",
]

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You are a careful assistant. Answer from the passages only."},
        {"role": "user", "content": "Passage one.\n\nPassage two: 42 caf\u00e9s.\n\nQuestion: how many?"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi \U0001f600\n"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "def f(x):\n    return x  # <- explain"},
    ],
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.models:
        tokenizer = load_tokenizer(path)
        texts = [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS]
        chats = []
        for messages in CHATS if getattr(tokenizer, "chat_template", None) else []:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            chats.append({"messages": messages, "add_generation_prompt": True, "rendered": rendered, "ids": ids})
        lines = ",\n".join(json.dumps(entry) for entry in texts)
        chat_lines = ",\n".join(json.dumps(entry) for entry in chats)
        out = args.out / f"{path.stem}.json"
        out.write_text(f'{{"texts": [\n{lines}\n],\n"chats": [\n{chat_lines}\n]}}\n', encoding="utf-8")
        print(f"{out}: {len(texts)} texts, {len(chats)} chats, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
