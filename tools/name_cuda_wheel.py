#!/usr/bin/env python3
"""name_cuda_wheel.py WHEEL: turns a wheel `tokenmill` that holds the CUDA backend into `tokenmill-cuda` (for tools/build_wheel).

Another name, so that an index can hold both and pip takes the one that is asked for, and a dependency on cuBLAS of the same
CUDA; the CUDA runtime itself is inside. Both wheels hold the module tokenmill: install one of them. Needs the package wheel.
"""
import pathlib
import re
import subprocess
import sys
import tempfile


def cublas_requirement(module):
    """As cublas_library.cc looks for it: the major version is in the module."""
    found = re.search(rb"libcublas\.so\.(\d+)", module.read_bytes())
    if not found:
        sys.exit(f"name_cuda_wheel.py: {module.name} holds no CUDA backend")
    major = found.group(1).decode()
    return "nvidia-cublas-cu12>=12.4" if major == "12" else f"nvidia-cublas=={major}.*"


def main():
    source = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        wheel = [sys.executable, "-m", "wheel"]
        subprocess.run([*wheel, "unpack", "--dest", folder, str(source)], check=True, stdout=subprocess.DEVNULL)
        root = next(pathlib.Path(folder).iterdir())
        info = next(root.glob("*.dist-info"))
        requirement = cublas_requirement(next((root / "tokenmill").glob("_native*.so")))
        lines = (info / "METADATA").read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if not line.startswith(("Provides-Extra: cuda", "Requires-Dist: nvidia-"))]
        lines[lines.index("Name: tokenmill")] = "Name: tokenmill-cuda"
        lines.insert(lines.index(""), f"Requires-Dist: {requirement}")
        (info / "METADATA").write_text("\n".join(lines), encoding="utf-8")
        info.rename(root / info.name.replace("tokenmill-", "tokenmill_cuda-"))
        subprocess.run([*wheel, "pack", "--dest-dir", str(source.parent), str(root)], check=True, stdout=subprocess.DEVNULL)
    source.unlink()


main()
