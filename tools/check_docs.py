#!/usr/bin/env python3
"""Fails where a document names a file, a folder, a heading or a make target that does not exist, where no page leads to
it, and where docs/errors.md quotes a message that no source has."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
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
            for target, anchor in LINK.findall(line):
                if "://" in target:
                    continue
                there = os.path.join(ROOT, folder, target) if target else os.path.join(ROOT, path)
                if not os.path.exists(there):
                    yield f"{path}:{number}: link to what is not there: {target}"
                elif anchor and anchor not in anchors(there):
                    yield f"{path}:{number}: link to a heading that is not there: {target}#{anchor}"
            for code in CODE.findall(line):
                name = code.split()[0]
                if name.startswith(TOP) and not re.search(r"[*<>{}]|\b(NAME|X|name)\b", name):
                    if not os.path.exists(os.path.join(ROOT, name.split(":")[0])):
                        yield f"{path}:{number}: no such file: {name}"
                for target in MAKE.findall(code):
                    if target not in make_targets:
                        yield f"{path}:{number}: no such make target: {target}"


def anchors(path):
    """The names by which a page's headings can be linked, as GitHub makes them."""
    with open(path, encoding="utf-8") as file:
        headings = re.findall(r"^#+ (.*)$", file.read(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unlinked(documents):
    """Pages of docs/ that the index does not lead to."""
    with open(os.path.join(ROOT, "docs", "index.md"), encoding="utf-8") as file:
        linked = {target for target, _ in LINK.findall(file.read())}
    for path in documents:
        name = os.path.basename(path)
        if path.startswith("docs/") and name != "index.md" and name not in linked:
            yield f"docs/index.md: no link to {name}"


def stale_messages():
    """Messages that docs/errors.md quotes; what stands between two … must be in one string of the sources."""
    strings = []
    for top in ("src", "apps", "bindings"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in names:
                if name.endswith((".cc", ".h", ".py", ".rs")):
                    with open(os.path.join(folder, name), encoding="utf-8") as file:
                        # Neighbouring literals are one string.
                        strings.append(re.sub(r'"\s*\n\s*"', "", file.read()).replace('\\"', '"'))
    strings = "\n".join(strings)
    with open(os.path.join(ROOT, "docs", "errors.md"), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("| `"):
                continue
            for message in CODE.findall(line.split(" | ")[0]):
                for part in re.split(r"…|'", message):
                    if len(part.strip()) > 3 and part.strip(" ()") not in strings:
                        yield f"docs/errors.md:{number}: no source has the message: {part.strip()}"


def main():
    make_targets = targets()
    documents = ["README.md"] + [os.path.join("docs", name) for name in sorted(os.listdir(os.path.join(ROOT, "docs")))
                                 if name.endswith(".md")]
    problems = [problem for path in documents for problem in problems_of(path, make_targets)]
    problems += [*unlinked(documents), *stale_messages()]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"docs: {len(documents)} documents, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
