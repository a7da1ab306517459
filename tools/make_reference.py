#!/usr/bin/env python3
"""Writes the tables of options into the documents, as the program knows them.

  tools/make_reference.py PROGRAM [--check]     PROGRAM: build/bin/tokenmill; --check: only tell whether they are stale
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PART = re.compile(r"(<!-- begin: tokenmill (reference [a-z-]+) -->\n)(.*?)(<!-- end -->)", re.S)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    stale = parts = 0
    for name in sorted(os.listdir(os.path.join(ROOT, "docs"))):
        path = os.path.join(ROOT, "docs", name)
        if not name.endswith(".md"):
            continue
        with open(path, encoding="utf-8") as file:
            old = file.read()

        def table(match):
            made = subprocess.run([arguments[0], *match[2].split()], check=True, stdout=subprocess.PIPE, text=True)
            return f"{match[1]}\n{made.stdout}\n{match[4]}"

        new, count = PART.subn(table, old)
        parts += count
        if new == old:
            continue
        stale += 1
        if "--check" in sys.argv:
            print(f"docs/{name} is stale; run tools/make_reference.py {arguments[0]}", file=sys.stderr)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(new)
    print(f"reference: {parts} tables, {stale} {'stale' if '--check' in sys.argv else 'rewritten'}")
    return 1 if stale and "--check" in sys.argv or parts == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
