#!/usr/bin/env python3
"""What Jinja2 renders of constructs and of chat templates, set up as transformers sets it up.

usage: make_templates.py --out DIR [--templates DIR]

Writes DIR/constructs.json, [{"template", "expected"}], and DIR/chats.json, [{"template", "case", "expected"}], where `expected` is null
if Jinja2 fails. The variables are in DIR/variables.json and DIR/cases.json. Chat templates are the *.jinja files of --templates, by
default of DIR itself.
"""

import argparse
import json
import pathlib
import re

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = "26 Jul 2024"


class Generation(jinja2.ext.Extension):
    """`{% generation %}` renders its body, as transformers' tracker does when nothing is tracked."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    """transformers 5.23, `utils/chat_template_utils.py`, `_cached_compile_jinja_template`."""

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW
    return env


VARIABLES = {
    "s": "  Hello, World  ",
    "word": "straße",
    "path": "a/b/c/d",
    "lines": "one\ntwo\r\nthree\n\nfive",
    "quote": "it's \"q\" \\ \n\t é \u0001 \u200b 😀",
    "n": 7,
    "neg": -7,
    "big": 12345678901234567890,
    "f": 2.5,
    "small": 0.00001,
    "large": 1e16,
    "whole": 3.0,
    "yes": True,
    "no": False,
    "nil": None,
    "empty": "",
    "nums": [3, 1, 2, 10],
    "words": ["b", "A", "c", "a", "B"],
    "mixed": [1, "a", None, True, 2.5, [1, 2], {"k": "v"}],
    "d": {"b": 1, "a": {"x": [1, 2]}, "items": "item", "é<": "'&\""},
    "users": [
        {"name": "Ann", "age": 30, "admin": True, "city": "Rome"},
        {"name": "bob", "age": 25, "admin": False, "city": "Oslo"},
        {"name": "Cy", "age": 35, "city": "Rome"},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b> & 'you'"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
        {"role": "user", "content": [{"type": "text", "text": "Parts"}, {"type": "text", "text": "here"}]},
    ],
    "nested": [1, [2, [3, [4]]]],
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}],
}

# Templates, one or more a line; backslash n stands for a line break and two backslashes for one.
CONSTRUCTS = pathlib.Path(__file__).with_name("constructs.txt")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the <current> weather & more, for \"a\" city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "detail": {"type": "object", "properties": {"wind": {"type": "boolean"}}, "required": ["wind"]},
            },
            "required": ["city"],
        },
        "return": {"type": "object", "description": "A report"},
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2], "detail": {"wind": True}, "p": 0.5, "q": None}},
}
TURNS = [
    {"role": "user", "content": "What is 1 < 2?"},
    {"role": "assistant", "content": "True."},
    {"role": "user", "content": "  Why?\n\nExplain it's \"logic\".  "},
]
CASES = {
    "one": {"messages": [{"role": "user", "content": "Hi 😀"}]},
    "turns": {"messages": TURNS},
    "system": {"messages": [{"role": "system", "content": " Be brief. \n"}, *TURNS]},
    "thinking": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4"},
            {"role": "user", "content": "And 3?"},
            {"role": "assistant", "content": "7", "reasoning_content": "4 + 3"},
            {"role": "user", "content": "Thanks"},
        ],
        "enable_thinking": False,
    },
    "thinking_on": {"messages": TURNS, "enable_thinking": True, "reasoning_effort": "high"},
    "tools": {"messages": TURNS, "tools": [WEATHER]},
    "tool_turns": {
        "messages": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "Weather in Zürich?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "{\"t\": 21.5}"},
            {"role": "assistant", "content": "21.5 degrees."},
            {"role": "user", "content": "And tomorrow?"},
        ],
        "tools": [WEATHER, WEATHER],
    },
    "tool_null": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
            {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "sunny"},
        ],
        "tools": [WEATHER],
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " two"}]}]},
    "documents": {
        "messages": TURNS,
        "documents": [{"title": "T & Co", "text": "Some text"}, {"title": "U", "text": "More"}],
    },
    "two_users": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    "ends_with_assistant": {"messages": TURNS[:2], "add_generation_prompt": False},
    "empty_content": {"messages": [{"role": "user", "content": ""}]},
    "odd_role": {"messages": [{"role": "critic", "content": "no"}]},
    "no_messages": {"messages": []},
}
USUAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "add_generation_prompt": True,
    "tools": None,
    "documents": None,
}


def split(line):
    """The expressions of a line that has nothing else, so that one that fails does not hide the others."""
    parts = [line] if "{%" in line else re.split(r"(?<=\}\})[ |]+(?=\{\{)", line)
    unescape = lambda part: re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", part)
    return [unescape(part) for part in parts if part.strip()]


def rendered(env, source, variables):
    try:
        return env.from_string(source).render(**variables)
    except Exception:  # whatever Python raises, the template failed
        return None


def write(path, value):
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in value)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path}: {len(value)} entries, {sum(entry['expected'] is None for entry in value)} fail, {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--templates", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    env = environment()
    (args.out / "variables.json").write_text(json.dumps(VARIABLES, indent=1) + "\n", encoding="utf-8")
    (args.out / "cases.json").write_text(json.dumps({"usual": USUAL, "cases": CASES}, indent=1) + "\n", encoding="utf-8")
    sources = list(dict.fromkeys(construct for line in CONSTRUCTS.read_text(encoding="utf-8").split("\n") for construct in split(line)))
    write(args.out / "constructs.json", [{"template": s, "expected": rendered(env, s, VARIABLES)} for s in sources])
    chats = []
    for path in sorted((args.templates or args.out).glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for case, variables in CASES.items():
            chats.append({"template": path.name, "case": case, "expected": rendered(env, source, {**USUAL, **variables})})
    write(args.out / "chats.json", chats)


if __name__ == "__main__":
    main()
