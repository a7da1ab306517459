#!/usr/bin/env python3
"""Compiles and runs the documents' snippets over a tiny model, and fails where one does.

  tools/run_snippets.py BUILD_FOLDER [DOCUMENT...]

```cpp with a main is a program; without, the inside of a function that has an `engine`. ```sh is run by bash -e. The
language `console` is for commands that are shown only. ```python is run where build/python is there (make python), and
only compiled elsewhere. `model.gguf` stands for the tiny model.
"""
import os
import re
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "util"))
import tiny_text_model  # noqa: E402

FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.M | re.S)
FLAGS = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror"]
HEAD = """#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <string>
#include <utility>
#include <vector>
#include "tokenmill/engine.h"
using std::int32_t;
"""
SHOWN_ONLY = {"console", "cmake", "json", "text", ""}


class Snippets:
    def __init__(self, build, folder):
        self.build, self.folder = os.path.abspath(build), folder
        self.lib = os.path.join(self.build, "lib")
        with open(os.path.join(build, "CMakeCache.txt"), encoding="utf-8") as file:
            cache = file.read()
        self.compiler = re.search(r"^CMAKE_CXX_COMPILER:[A-Z]+=(.*)$", cache, re.M)[1]
        self.environment = {**os.environ, "PATH": os.path.join(self.build, "bin") + os.pathsep + os.environ["PATH"],
                            "LD_LIBRARY_PATH": self.lib}
        self.programs, self.scripts, self.fragments, self.pythons = [], [], [], []
        self.python = os.path.join(self.build, "venv/bin/python")
        if not (os.path.exists(self.python) and os.path.isdir(os.path.join(self.build, "python/tokenmill"))):
            self.python = None
        self.environment["PYTHONPATH"] = os.path.join(self.build, "python")
        self.failures, self.done = [], 0
        model = os.path.join(folder, "my-model")
        os.mkdir(model)
        tiny_text_model.make(os.path.join(ROOT, "tests/data/tiny/stories260k"), model)

    def read(self, document):
        with open(os.path.join(ROOT, document), encoding="utf-8") as file:
            text = file.read()
        for match in FENCE.finditer(text):
            place = f"{document}:{text.count(chr(10), 0, match.start()) + 1}"
            code = match[2].replace("model.gguf", "my-model")
            if match[1] == "cpp":
                (self.programs if "int main(" in code else self.fragments).append((place, code))
            elif match[1] == "sh":
                self.scripts.append((place, code))
            elif match[1] == "python":
                try:
                    compile(code, place, "exec")
                    self.pythons.append((place, code))
                except SyntaxError as error:
                    self.failures.append(f"{place}: {error}")
            elif match[1] not in SHOWN_ONLY:
                self.failures.append(f"{place}: nothing is known of the language '{match[1]}'")

    def run(self, place, *command):
        try:
            result = subprocess.run(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
        except subprocess.TimeoutExpired:
            self.failures.append(f"{place}: took more than five minutes")
            return False
        if result.returncode != 0:
            self.failures.append(f"{place}: exit code {result.returncode}\n{result.stdout.decode(errors='replace')}")
        return result.returncode == 0

    def run_program(self, number, place, code):
        source = os.path.join(self.folder, f"program{number}.cc")
        with open(source, "w", encoding="utf-8") as file:
            # What the compiler says names the document's line.
            line = int(place.rsplit(":", 1)[1]) + 1
            file.write(code if "#line" in code else f'#line {line} "{place.rsplit(":", 1)[0]}"\n{code}')
        program = source.removesuffix(".cc")
        if self.run(place, self.compiler, *FLAGS, "-I", os.path.join(ROOT, "include"), source, "-o", program,
                    f"-L{self.lib}", "-ltokenmill") and self.run(place, program):
            self.done += 1

    def all_fragments(self):
        """One program of them all: a header is read once then."""
        parts = [HEAD]
        for number, (place, code) in enumerate(self.fragments):
            name, line = place.rsplit(":", 1)
            parts.append(f'static void fragment{number}(tokenmill::Engine& engine) {{\n#line {int(line) + 1} "{name}"\n'
                         f"{code}}}\n")
        calls = "".join(f'  std::fprintf(stderr, "in the snippet {place}\\n");\n  fragment{number}(engine);\n'
                        for number, (place, _) in enumerate(self.fragments))
        parts.append('int main() {\n  tokenmill::Engine engine({.model_path = "my-model", .log_level = "error"});\n'
                     f"{calls}}}\n")
        return "".join(parts)

    def run_all(self):
        programs = list(self.programs)
        if self.fragments:
            programs.append((f"{len(self.fragments)} fragments:0", self.all_fragments()))
        threads = [threading.Thread(target=self.run_program, args=(number, place, code))
                   for number, (place, code) in enumerate(programs)]
        for begin in range(0, len(threads), 2):
            for thread in threads[begin:begin + 2]:
                thread.start()
            for thread in threads[begin:begin + 2]:
                thread.join()
        for place, code in self.scripts:
            self.done += self.run(place, "bash", "-euo", "pipefail", "-c", code)
        for place, code in self.pythons if self.python else []:
            self.done += self.run(place, self.python, "-c", code)


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    documents = sys.argv[2:] or ["README.md"] + sorted(
        os.path.join("docs", name) for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".md"))
    with tempfile.TemporaryDirectory() as folder:
        snippets = Snippets(sys.argv[1], folder)
        for document in documents:
            snippets.read(document)
        snippets.run_all()
    for failure in snippets.failures:
        print(failure, file=sys.stderr)
    if snippets.pythons and not snippets.python:
        print("not run: Python snippets; `make python` builds the package")
    print(f"snippets: {len(snippets.programs)} programs, {len(snippets.fragments)} fragments, {len(snippets.scripts)} "
          f"scripts, {len(snippets.pythons)} in Python, {len(snippets.failures)} failures")
    return 1 if snippets.failures or snippets.done == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
