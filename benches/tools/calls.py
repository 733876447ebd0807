#!/usr/bin/env python3
"""Calls of tools on prompts that each need one of five functions: the right function, valid JSON, arguments of the schema, stream = whole.

usage: calls.py --kvshare BINARY --model MODEL [--choice auto|required] [--loose]

Greedy; prompts and tools are in calls.json. `--loose` sends the tools without `strict`. Needs jsonschema (pip install jsonschema).
"""

import argparse
import json
import pathlib
import sys
import urllib.request

import jsonschema

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "quality"))
from daemon import daemon  # noqa: E402

SET = json.loads((pathlib.Path(__file__).parent / "calls.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvshare", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--choice", default="auto")
    parser.add_argument("--loose", action="store_true")
    args = parser.parse_args()
    tools = json.loads(json.dumps(SET["tools"]))
    for tool in tools if args.loose else []:
        del tool["function"]["strict"]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    counts = dict.fromkeys(("called", "right function", "valid JSON", "of the schema", "stream = whole"), 0)
    with daemon(args.kvshare, args.model, "prefix", []) as url:
        for text, expected in SET["prompts"]:
            body = {"messages": [{"role": "user", "content": text}], "tools": tools, "tool_choice": args.choice, "temperature": 0, "max_tokens": 200}
            whole, streamed = ask(url, body), ask_stream(url, body)
            counts["stream = whole"] += whole == streamed
            calls = whole[1]
            counts["called"] += bool(calls)
            counts["right function"] += bool(calls) and calls[0][0] == expected
            counts["valid JSON"] += bool(calls) and all(parsed(arguments) is not None for _, arguments in calls)
            counts["of the schema"] += bool(calls) and all(fits(schemas.get(name), parsed(arguments)) for name, arguments in calls)
            if not calls or calls[0][0] != expected or not all(fits(schemas.get(name), parsed(a)) for name, a in calls):
                print(f"  {text!r}: {whole}")
    for name, count in counts.items():
        print(f"{name}: {count} of {len(SET['prompts'])}")


def ask(url, body):
    message = json.load(post(url, body))["choices"][0]["message"]
    return message["content"] or "", [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


def ask_stream(url, body):
    text, calls = "", []
    for line in post(url, {**body, "stream": True}).read().decode().splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", []):
                if "name" in call["function"]:
                    calls.append([call["function"]["name"], ""])
                calls[call["index"]][1] += call["function"]["arguments"]
    return text, [tuple(call) for call in calls]


def post(url, body):
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=600)


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def fits(schema, arguments):
    return schema is not None and arguments is not None and jsonschema.Draft202012Validator(schema).is_valid(arguments)


if __name__ == "__main__":
    main()
