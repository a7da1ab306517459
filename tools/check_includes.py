#!/usr/bin/env python3
"""Reads every #include of the project and fails where one points upwards (docs/ARCHITECTURE.md has the directions).

Also: no device #ifdef outside the backend registry and ops/cuda, public headers include the standard library only, and
every operation of ops/cpu has its twin in the file of the same name in ops/cuda.
"""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# module -> the modules it may include besides itself; "api" is include/tokenmill.
ALLOWED = {
    "base": {"api"},
    "batch": {"base"},
    "text": {"base", "api"},
    "cache": {"base", "api"},
    "sched": {"cache", "text", "batch", "base", "api"},
    "checkpoint": {"base", "text", "api"},
    "ops": {"base", "batch", "api"},
    "nn": {"ops", "checkpoint", "batch", "base", "api"},
    "models": {"nn", "checkpoint", "ops", "base", "api"},
    "runner": {"models", "nn", "ops", "batch", "base", "api"},
    "engine": {"sched", "runner", "models", "text", "checkpoint", "ops", "batch", "base", "api"},
    "verify": {"engine", "runner", "text", "checkpoint", "models", "nn", "ops", "batch", "base", "api"},
    "apps": {"api", "verify"},
    "examples": {"api"},
    "bindings": {"api"},
}
# What a module may take from a whole other module only: the shim's header is text's C face for checkpoint.
NARROW = {("checkpoint", "text"): re.compile(r"^text/shim/")}
# The two columns of the design meet in batch/ only.
HOST, DEVICE = {"text", "cache", "sched"}, {"ops", "nn", "models", "runner"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
DEVICE_IF = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*(CUDA|HIP_)")
DEVICE_IF_ALLOWED = {"src/ops/backend_registry.cc"}
OPERATION = re.compile(r"^[^\s/#].*?\b(?:Cpu|Cuda)Backend::(\w+)\(", re.MULTILINE)


def module_of_file(path):
    parts = path.split("/")
    if parts[0] == "src":
        return parts[1] if len(parts) > 2 else None
    if parts[0] == "include":
        return "api"
    return parts[0] if parts[0] in ALLOWED else None


def module_of_include(target):
    head = target.split("/")[0]
    if head == "tokenmill":
        return "api"
    if head == "cli" or head == "server":
        return "apps"
    return head if "/" in target and head in ALLOWED else None


def check_include(path, module, quote, target):
    """The complaint about one #include, or None."""
    to = module_of_include(target)
    if module == "api":
        if quote == '"' and to != "api":
            return "a public header may include tokenmill/ and the standard library only"
        if quote == "<" and ("/" in target or target.endswith(".h")):
            return "a public header may include the standard library only"
        return None
    if to is None or to == module:
        return None
    if {module, to} & HOST and {module, to} & DEVICE:
        return f"{module}/ and {to}/ are of different columns; they meet in batch/"
    if to not in ALLOWED[module]:
        return f"{module}/ may include {', '.join(sorted(ALLOWED[module]))}; not {to}/"
    narrow = NARROW.get((module, to))
    if narrow and not narrow.match(target):
        return f"{module}/ may include only {narrow.pattern} of {to}/"
    return None


def check_ops(path, target):
    """cpu/ and cuda/ mirror each other and never meet."""
    for mine, other in (("cpu", "cuda"), ("cuda", "cpu")):
        if path.startswith(f"src/ops/{mine}/") and target.startswith(f"ops/{other}/"):
            return f"ops/{mine}/ may not include ops/{other}/"
    return None


def check_file(path):
    module = module_of_file(path)
    if module is None:
        return []
    problems = []
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            found = INCLUDE.match(line)
            complaint = None
            if found:
                complaint = check_include(path, module, *found.groups()) or check_ops(path, found.group(2))
            elif DEVICE_IF.match(line) and path not in DEVICE_IF_ALLOWED and not path.startswith("src/ops/cuda/"):
                complaint = "a device #if outside the backend registry"
            if complaint:
                problems.append(f"{path}:{number}: {complaint}: {line.strip()}")
    return problems


def operations(folder):
    """{file name without its ending: names of the backend's functions defined there}."""
    found = {}
    for name in sorted(os.listdir(os.path.join(ROOT, folder))):
        stem, ending = os.path.splitext(name)
        if ending in (".cc", ".cu"):
            with open(os.path.join(ROOT, folder, name), encoding="utf-8") as file:
                found.setdefault(stem, set()).update(OPERATION.findall(file.read()))
    return found


def check_twins():
    twins = operations("src/ops/cuda")
    problems = []
    for stem, names in operations("src/ops/cpu").items():
        if stem == "cpu_backend":
            continue
        for name in sorted(names - twins.get(stem, set())):
            problems.append(f"src/ops/cpu/{stem}.cc: {name}() has no twin in src/ops/cuda/{stem}.cu or .cc")
    return problems


def main():
    problems, files = check_twins(), 0
    for top in ("include", "src", "apps", "examples", "bindings"):
        for folder, _, names in os.walk(os.path.join(ROOT, top)):
            for name in sorted(names):
                if name.endswith((".h", ".cc", ".cu", ".cuh")):
                    files += 1
                    problems += check_file(os.path.relpath(os.path.join(folder, name), ROOT))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"includes: {files} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
