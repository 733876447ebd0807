"""Types into a program on a terminal of its own, and prints what it wrote and how it ended.

usage: session.py KEYS PROGRAM [ARGUMENT ...]     KEYS: JSON list of [text to wait for, keys to type then]
"""

import json
import os
import pty
import select
import sys
import time

PATIENCE = 60


def main():
    steps, command = json.loads(sys.argv[1]), sys.argv[2:]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command[0], command)
    seen, done = "", 0
    for text, keys in steps:
        seen = read(terminal, seen, lambda seen: text in seen[done:])
        done = seen.index(text, done) + len(text)
        os.write(terminal, keys.encode())
    seen = read(terminal, seen, lambda _: False)
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status), "written": seen}))


def read(terminal, seen, is_enough):
    """`seen` and what is written until that is enough or the program ends."""
    deadline = time.monotonic() + PATIENCE
    while not is_enough(seen):
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        if not ready:
            raise SystemExit(f"nothing more than {seen!r}")
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says so when the program has closed its end.
            piece = b""
        if not piece:
            break
        seen += piece.decode(errors="replace")
    return seen


main()
