#!/usr/bin/env python3
"""Prints the path of a CUDA compiler (nvcc 12.4 or later, with cuBLAS's headers) and installs one where there is none.

In this order: CUDACXX, nvcc on PATH, CUDA_HOME, CUDA_PATH, /usr/local/cuda; else the pinned PyPI packages below go into
the user's cache (TOKENMILL_CACHE, else XDG_CACHE_HOME/tokenmill, else ~/.cache/tokenmill), with the links a toolkit has.
They need neither root nor a card. Standard library only.
"""
import fcntl
import os
import re
import shutil
import subprocess
import sys

OLDEST = (12, 4)
PACKAGES = {
    "nvidia-cuda-nvcc": "13.0.88",
    "nvidia-cuda-crt": "13.0.88",
    "nvidia-nvvm": "13.0.88",
    "nvidia-cuda-runtime": "13.0.96",
    "nvidia-cuda-cccl": "13.0.85",
    "nvidia-cublas": "13.0.2.14",
}
NAME = "cuda-13.0"
BYTES_NEEDED = 2_500_000_000


class ToolkitError(Exception):
    pass


def version_of(nvcc):
    """(major, minor), or None where it does not run."""
    try:
        text = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def has_cublas(nvcc):
    root = os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    folders = [os.path.join(root, "include"), os.path.join(root, "targets", "x86_64-linux", "include"), "/usr/include"]
    return any(os.path.exists(os.path.join(folder, "cublas_v2.h")) for folder in folders)


def users_own():
    """The first toolkit of the user's that will do, or None; what will not do is named on stderr."""
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        candidates.append(os.path.join(root, "bin", "nvcc") if root else None)
    for nvcc in candidates:
        if not nvcc or not os.path.exists(nvcc):
            continue
        version = version_of(nvcc)
        if version is None or version < OLDEST:
            shown = ".".join(map(str, version)) if version else "unknown"
            print(f"tools/cuda_toolkit.py: {nvcc} is version {shown}; {OLDEST[0]}.{OLDEST[1]} or later is needed",
                  file=sys.stderr)
        elif not has_cublas(nvcc):
            print(f"tools/cuda_toolkit.py: {nvcc} has no cublas_v2.h beside it", file=sys.stderr)
        else:
            return nvcc
    return None


def cache_folder():
    if os.environ.get("TOKENMILL_CACHE"):
        return os.environ["TOKENMILL_CACHE"]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tokenmill")


def link(target, path):
    if not os.path.lexists(path):
        os.symlink(target, path)


def make_links(root):
    """What a toolkit has and the packages lack: lib64, and library names without a version."""
    link("lib", os.path.join(root, "lib64"))
    for name in ("libcudart", "libcublas", "libcublasLt"):
        link(f"{name}.so.13", os.path.join(root, "lib", f"{name}.so"))


def install(folder):
    """folder/nvidia/cu13 becomes the toolkit; it appears whole or not at all."""
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    with open(folder + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another build may be at it
        if os.path.isdir(folder):
            return
        if shutil.disk_usage(parent).free < BYTES_NEEDED:
            raise ToolkitError(f"{parent} has less than {BYTES_NEEDED // 10**6} MB free for the CUDA toolkit")
        part = folder + ".part"
        shutil.rmtree(part, ignore_errors=True)
        print("fetching the CUDA 13.0 compiler and cuBLAS from PyPI (about 0.6 GB)", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--no-cache-dir",
                   "--only-binary=:all:", "--disable-pip-version-check", "--root-user-action=ignore", "--quiet",
                   "--target", part] + [f"{name}=={version}" for name, version in PACKAGES.items()]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode != 0:
            shutil.rmtree(part, ignore_errors=True)
            detail = "\n".join(result.stdout.strip().splitlines()[-3:])
            raise ToolkitError(f"pip could not install the CUDA toolkit:\n{detail}\n"
                               "Install CUDA 12.4 or later yourself, or set CUDACXX to your nvcc.")
        make_links(os.path.join(part, "nvidia", "cu13"))
        os.rename(part, folder)


def main():
    nvcc = users_own()
    if nvcc is None:
        folder = os.path.join(cache_folder(), NAME)
        install(folder)
        nvcc = os.path.join(folder, "nvidia", "cu13", "bin", "nvcc")
        if version_of(nvcc) is None:
            raise ToolkitError(f"{nvcc} does not run; remove {folder} and try again")
    print(nvcc)


if __name__ == "__main__":
    try:
        main()
    except ToolkitError as error:
        sys.exit(f"tools/cuda_toolkit.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
