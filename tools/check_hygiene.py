#!/usr/bin/env python3
"""Fails on what must not be in the project: absolute paths of one machine, unfinished-work marks, large files.

Line length and layout are clang-format's business (tools/format)."""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT = (".h", ".cc", ".c", ".rs", ".toml", ".py", ".sh", ".md", ".cmake", ".txt", ".json", ".yml", "")
MAX_BYTES = 2 << 20
# A path in somebody's home or working folder; /usr, /etc, /proc, /sys and /dev are the same everywhere.
MACHINE_PATH = re.compile(r"""(?<![\w.$}/])/(?:home|root|work|Users|mnt|srv|data)/[\w.-]+""")
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
SKIP = ("tests/data/", "src/text/shim/Cargo.lock", "LICENSE", "tools/check_hygiene.py")


def problems_of(path):
    full = os.path.join(ROOT, path)
    if os.path.islink(full) or not os.path.isfile(full):
        return
    if os.path.getsize(full) > MAX_BYTES:
        yield f"{path}: larger than {MAX_BYTES >> 20} MiB"
    if path.startswith(SKIP) or os.path.splitext(path)[1] not in TEXT:
        return
    with open(full, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            for pattern, what in ((MACHINE_PATH, "a path of one machine"), (UNFINISHED, "unfinished work")):
                found = pattern.search(line)
                if found:
                    yield f"{path}:{number}: {what}: {found.group(0)}"


def main():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE).stdout.decode().split("\0")
    files = [path for path in listed if path]
    problems = [problem for path in files for problem in problems_of(path)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"hygiene: {len(files)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
