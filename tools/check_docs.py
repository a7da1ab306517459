#!/usr/bin/env python3
"""Fails where a document names a file, a folder or a make target that does not exist."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`")
# In code spans, what starts with a top-level folder or is a known file is taken for a path.
TOP = ("include/", "src/", "apps/", "examples/", "tests/", "bench/", "tools/", "docs/", "cmake/", ".ci/")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")


def targets():
    with open(os.path.join(ROOT, "Makefile"), encoding="utf-8") as file:
        return set(re.findall(r"^([a-z][a-z-]*):", file.read(), re.M))


def problems_of(path, make_targets):
    folder = os.path.dirname(path)
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            for target in LINK.findall(line):
                if "://" not in target and not os.path.exists(os.path.join(ROOT, folder, target)):
                    yield f"{path}:{number}: link to what is not there: {target}"
            for code in CODE.findall(line):
                name = code.split()[0]
                if name.startswith(TOP) and not re.search(r"[*<>{}]|\b(NAME|X|name)\b", name):
                    if not os.path.exists(os.path.join(ROOT, name.split(":")[0])):
                        yield f"{path}:{number}: no such file: {name}"
                for target in MAKE.findall(code):
                    if target not in make_targets:
                        yield f"{path}:{number}: no such make target: {target}"


def main():
    make_targets = targets()
    documents = ["README.md"] + [os.path.join("docs", name) for name in sorted(os.listdir(os.path.join(ROOT, "docs")))
                                 if name.endswith(".md")]
    problems = [problem for path in documents for problem in problems_of(path, make_targets)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(documents)} documents, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
