#!/usr/bin/env python3
"""The project's own checks catch what they are for: each is run on a copy with one fault planted."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Checks(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = self.folder.name
        for part in ("tools", "include", "src/base", "src/sched", "src/ops"):
            shutil.copytree(os.path.join(ROOT, part), os.path.join(self.root, part))

    def check(self, name):
        return subprocess.run([sys.executable, os.path.join(self.root, "tools", name)], cwd=self.root,
                              capture_output=True, text=True)

    def append(self, path, text):
        with open(os.path.join(self.root, path), "a", encoding="utf-8") as file:
            file.write(text)

    def test_include_directions(self):
        clean = self.check("check_includes.py")
        self.assertEqual(clean.returncode, 0, clean.stderr)
        faults = (("src/base/check.h", '#include "sched/scheduler.h"\n', "base/ may include"),
                  ("src/sched/scheduler.h", '#include "ops/backend.h"\n', "different columns"),
                  ("include/tokenmill/error.h", '#include "base/check.h"\n', "public header"),
                  ("src/ops/cpu/cpu_backend.h", '#include "ops/cuda/x.h"\n', "may not include ops/cuda/"),
                  ("src/base/check.h", "#ifdef __CUDACC__\n", "device #if"),
                  ("src/ops/cpu/norm.cc", "void CpuBackend::layer_norm(Matrix x) {}\n", "layer_norm() has no twin"))
        for path, text, message in faults:
            self.append(path, text)
            result = self.check("check_includes.py")
            self.assertEqual(result.returncode, 1, path)
            self.assertIn(message, result.stderr)

    def test_hygiene(self):
        subprocess.run(["git", "init", "-q", self.root], check=True)
        clean = self.check("check_hygiene.py")
        self.assertEqual(clean.returncode, 0, clean.stderr)
        mark, place = "TO" + "DO", "/ho" + "me/somebody/file"
        self.append("src/base/check.h", f"// {mark}: later\n// {place}\n")
        result = self.check("check_hygiene.py")
        self.assertEqual(result.returncode, 1)
        self.assertIn("unfinished work", result.stderr)
        self.assertIn("a path of one machine", result.stderr)

    def test_setup_refuses_an_unknown_flag(self):
        result = subprocess.run([os.path.join(ROOT, "tools", "setup"), "--nonsense"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 2)
        self.assertIn("usage", result.stderr)

    def test_setup_is_clear_where_it_cannot_install(self):
        with tempfile.TemporaryDirectory() as empty:
            os.symlink("/bin/sh", os.path.join(empty, "sh"))
            for name in ("dirname", "tail", "rm", "ls", "sort"):
                os.symlink(shutil.which(name), os.path.join(empty, name))
            result = subprocess.run(["/bin/sh", os.path.join(ROOT, "tools", "setup")], capture_output=True, text=True,
                                    env={"PATH": empty, "HOME": empty})
        self.assertEqual(result.returncode, 1)
        self.assertIn("g++", result.stderr)
        self.assertIn("by hand", result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)


class DemoModel(unittest.TestCase):
    def fetch(self, **environment):
        return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "fetch_demo_model.py")], text=True,
                              capture_output=True, env={**os.environ, **environment})

    def test_no_network_is_one_clear_failure_and_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as cache:
            result = self.fetch(TOKENMILL_CACHE=cache, PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0",
                                PIP_EXTRA_INDEX_URL="", PIP_TIMEOUT="2", PIP_NO_INDEX="", PIP_FIND_LINKS="")
            self.assertEqual(result.returncode, 1)
            self.assertEqual(result.stdout, "")
            self.assertIn("error", result.stderr)
            left = [name for name in os.listdir(os.path.join(cache, "models")) if name != ".lock"]
            self.assertEqual(left, [])

    def test_a_changed_file_is_not_taken(self):
        with tempfile.TemporaryDirectory() as cache:
            os.makedirs(os.path.join(cache, "models"))
            with open(os.path.join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf"), "wb") as file:
                file.write(b"GGUF but not this one")
            result = self.fetch(TOKENMILL_CACHE=cache, PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="0",
                                PIP_EXTRA_INDEX_URL="", PIP_TIMEOUT="2", PIP_NO_INDEX="", PIP_FIND_LINKS="")
            self.assertEqual(result.returncode, 1)


if __name__ == "__main__":
    unittest.main()
