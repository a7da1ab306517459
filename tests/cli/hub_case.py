"""What the hub's tests share: a hub of their own, an empty cache, the program under test.

A test of it is started as: test_hub_X.py PROGRAM TINY_MODEL_FOLDER"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hub_server import HubServer  # noqa: E402

PROGRAM, MODEL = sys.argv[1], sys.argv[2]
REPO = "org/tiny"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def model_files():
    return {name: read(os.path.join(MODEL, name)) for name in ("config.json", "generation_config.json", "model.safetensors")}


class Hub(unittest.TestCase):
    def setUp(self):
        self.hub = HubServer()
        self.addCleanup(self.hub.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = folder.name
        self.cache = os.path.join(self.home, "hub")
        self.env = {key: value for key, value in os.environ.items()
                    if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and "proxy" not in key.lower()}
        self.env.update({"HF_HOME": self.home, "HF_ENDPOINT": self.hub.endpoint})
        self.files = model_files()

    def add(self, files=None, **how):
        files = files or self.files
        return self.hub.add(REPO, files, lfs={name for name in files if name.endswith((".safetensors", ".gguf"))}, **how)

    def run_cli(self, *args, code=0, env=None, **how):
        result = subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=120,
                                env={**self.env, **(env or {})}, **how)
        self.assertEqual(result.returncode, code, result.stderr)
        return result

    def download(self, *args, model=REPO, **how):
        return self.run_cli("download", model, *args, **how).stdout.strip()

    def refused(self, *parts, model=REPO, args=(), **how):
        errors = self.run_cli("download", model, *args, code=1, **how).stderr
        for part in parts:
            self.assertIn(part, errors)
        self.assertEqual(len([line for line in errors.splitlines() if line.startswith("tokenmill: error: ")]), 1)
        return errors

    def repo_folder(self):
        return os.path.join(self.cache, "models--org--tiny")

    def check_snapshot(self, repo, names, path):
        """All of it, as huggingface_hub lays it out, and nothing besides."""
        folder = self.repo_folder()
        self.assertEqual(path, os.path.join(folder, "snapshots", repo.commit))
        found = sorted(os.path.relpath(os.path.join(where, file), path) for where, _, files in os.walk(path) for file in files)
        self.assertEqual(found, sorted(names))
        for name in names:
            link = os.path.join(path, name)
            self.assertEqual(os.readlink(link), "../" * (2 + name.count("/")) + "blobs/" + repo.etag(name))
            self.assertEqual(read(link), repo.files[name])
        self.assertEqual(set(os.listdir(os.path.join(folder, "blobs"))), {repo.etag(name) for name in names})
        self.assertEqual(read(os.path.join(folder, "refs", "main")).decode(), repo.commit)


def main():
    unittest.main(argv=sys.argv[:1], verbosity=1)
