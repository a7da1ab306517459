#!/usr/bin/env python3
"""Models by name: what is fetched, and the cache as huggingface_hub lays it out; where Python has huggingface_hub, it reads our
cache and we read its.

  test_hub_downloads.py PROGRAM TINY_MODEL_FOLDER
"""
import json
import os
import pty
import random
import subprocess
import sys
import time
import unittest

from hub_case import MODEL, PROGRAM, REPO, Hub, main, read

try:
    import huggingface_hub
except ImportError:
    huggingface_hub = None


class Downloads(Hub):
    def test_generate_by_name(self):
        repo = self.add({**self.files, "README.md": b"# x", "pytorch_model.bin": b"pickle", "original/params.json": b"{}",
                         "model.fp16.safetensors": b"other"})
        given = json.dumps({"input_ids": [1, 5, 9], "sampling_params": {"temperature": 0, "max_new_tokens": 8}})
        args = ("generate", "--skip-tokenizer-init", "--num-threads", "1", "--max-total-tokens", "512", "-i", "-")
        by_name = self.run_cli(*args, "-m", REPO, input=given)
        by_path = self.run_cli(*args, "-m", MODEL, input=given)
        self.assertEqual(json.loads(by_name.stdout)["output_ids"], json.loads(by_path.stdout)["output_ids"])
        path = os.path.join(self.repo_folder(), "snapshots", repo.commit)
        self.check_snapshot(repo, list(self.files), path)
        self.assertEqual(self.hub.count("README"), 0)
        # The second start asks once and fetches nothing.
        before = len(self.hub.requests)
        self.run_cli(*args, "-m", REPO, input=given)
        self.assertEqual([path for _, _, path, _ in self.hub.requests[before:]],
                         ["/api/models/org/tiny/revision/main?blobs=true"])
        self.assertEqual(self.run_cli("info", REPO).stdout.count("LlamaForCausalLM"), 1)

    def test_sizes_and_hashes_by_head(self):
        self.hub.bare = True
        repo = self.add({**self.files, "tokenizer.json": b"{}"})
        self.check_snapshot(repo, [*self.files, "tokenizer.json"], self.download())

    def test_index_and_shards(self):
        random.seed(1)
        shards = {f"model-0000{i}-of-00006.safetensors": random.randbytes(40_000 + i) for i in range(1, 7)}
        index = {"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}
        files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}
        repo = self.add({**files, "model-00001-of-00099.safetensors": b"of another"})
        for name in shards:
            self.hub.fault(name, slow=0.01)
        self.check_snapshot(repo, list(files), self.download())
        self.assertGreater(self.hub.most_active, 2)  # several at a time

    def test_revisions(self):
        repo = self.add()
        old = "1234567890" * 4
        repo.revisions.update({"v1": old, old: old, "pr/7": old})
        for revision in ("v1", "pr/7", old):
            path = self.download("--revision", revision)
            self.assertTrue(path.endswith("/snapshots/" + old), path)
        self.assertEqual(read(os.path.join(self.repo_folder(), "refs", "v1")).decode(), old)
        self.assertEqual(read(os.path.join(self.repo_folder(), "refs", "pr", "7")).decode(), old)
        self.assertFalse(os.path.exists(os.path.join(self.repo_folder(), "refs", "main")))
        before = len(self.hub.requests)
        self.download("--revision", old)  # a commit never changes
        self.assertEqual(len(self.hub.requests), before)
        self.refused("has no revision 'v2'", args=("--revision", "v2"))
        self.refused("revision must be a branch", args=("--revision", "../x"))
        # main moves on: what is the same is fetched once.
        self.download()
        repo.files["config.json"] += b"\n"
        repo.commit = "f" * 40
        repo.revisions.update({"main": repo.commit, repo.commit: repo.commit})
        fetched = self.hub.count("model.safetensors", "storage")
        self.assertEqual(read(os.path.join(self.download(), "config.json")), repo.files["config.json"])
        self.assertEqual(self.hub.count("model.safetensors", "storage"), fetched)

    def test_where_the_cache_is(self):
        repo = self.add()
        other = os.path.join(self.home, "elsewhere")
        for args, env in ((("--download-dir", other), {}), ((), {"HF_HUB_CACHE": other + "2"}),
                          ((), {"HF_HOME": "", "XDG_CACHE_HOME": other + "3"})):
            path = self.download(*args, env=env)
            self.assertTrue(path.startswith(other), path)
            self.assertTrue(path.endswith("models--org--tiny/snapshots/" + repo.commit), path)

    def test_gguf(self):
        files = {f"tiny-{tag}.gguf": tag.encode() for tag in ("Q4_K", "Q4_K_M", "Q8_0")}
        self.add({"README.md": b"", "mmproj-f16.gguf": b"eyes", **files})
        self.assertTrue(self.download(model=REPO + ":Q4_K_M").endswith("/tiny-Q4_K_M.gguf"))
        self.assertTrue(self.download(model=REPO + ":q4_k").endswith("/tiny-Q4_K.gguf"))
        self.assertTrue(self.download(model=REPO + ":tiny-Q8_0.gguf").endswith("/tiny-Q8_0.gguf"))
        self.assertEqual(self.hub.count("mmproj"), 0)
        self.refused("holds several GGUF files", "'tiny-Q4_K_M.gguf'", "'org/tiny:Q4_K_M'")
        self.refused("no GGUF file that is or has 'Q2_K'", "'tiny-Q8_0.gguf'", model=REPO + ":Q2_K")
        self.add({"sub/only-Q5_0.gguf": b"x"})
        self.assertTrue(self.download().endswith("/sub/only-Q5_0.gguf"))
        self.add({f"big-Q8_0-0000{i}-of-00002.gguf": b"x" for i in (1, 2)})
        self.refused("part of a split GGUF model", model=REPO + ":Q8_0")
        self.add()
        self.refused("holds no .gguf file", model=REPO + ":Q8_0")

    def test_tokenizer_only_and_dummy(self):
        self.add({**self.files, "tokenizer.json": b"{}"})
        self.assertNotIn("model.safetensors", os.listdir(self.download("--tokenizer-only")))
        self.assertNotIn("model.safetensors", os.listdir(self.download("--load-format", "dummy")))
        self.assertEqual(self.hub.count("model.safetensors", "storage"), 0)

    def test_progress(self):
        self.add()
        self.hub.fault("model.safetensors", slow=0.002)
        main_end, terminal = pty.openpty()
        process = subprocess.Popen([PROGRAM, "download", REPO], stdout=subprocess.PIPE, stderr=terminal, env=self.env)
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(main_end, 4096):
                shown += chunk
        except OSError:
            pass  # the terminal's other end has gone
        os.close(main_end)
        process.communicate()
        self.assertEqual(process.returncode, 0)
        self.assertIn(b"org/tiny", shown)
        self.assertIn(b"100% [", shown)
        self.assertIn(b"/s ETA", shown)
        quiet = self.run_cli("download", REPO, "--revision", "main").stderr
        self.assertNotIn("\r", quiet)


@unittest.skipUnless(huggingface_hub, "not run: huggingface_hub is not installed")
class WithHuggingfaceHub(Hub):
    def python(self, code, **env):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                                env={**self.env, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **env})
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()

    def test_it_reads_our_cache(self):
        repo = self.add()
        path = self.download()
        code = f"import huggingface_hub as h; print(h.snapshot_download({REPO!r}, allow_patterns=['*.json', '*.safetensors']))"
        self.assertEqual(self.python(code, HF_HUB_OFFLINE="1"), path)
        before = self.hub.count("model.safetensors", "storage")
        self.assertEqual(self.python(code), path)
        self.assertEqual(self.hub.count("model.safetensors", "storage"), before)
        scan = ("import huggingface_hub as h; i = h.scan_cache_dir(); r = next(iter(i.repos)); "
                "print(len(i.warnings), r.repo_id, r.nb_files, r.size_on_disk)")
        size = sum(len(data) for data in self.files.values())
        self.assertEqual(self.python(scan), f"0 {REPO} {len(self.files)} {size}")
        self.check_snapshot(repo, list(self.files), path)

    def test_we_read_its_cache(self):
        repo = self.add()
        path = self.python(f"import huggingface_hub as h; print(h.snapshot_download({REPO!r}))")
        self.check_snapshot(repo, list(self.files), path)
        self.assertEqual(self.download(env={"HF_HUB_OFFLINE": "1"}), path)
        before = self.hub.count("/resolve/")
        self.assertEqual(self.download(), path)
        self.assertEqual(self.hub.count("/resolve/"), before)

    def test_we_go_on_from_what_it_left(self):
        repo = self.add()
        self.hub.fault("model.safetensors", times=20, cut=200_000)
        subprocess.run([sys.executable, "-c", f"import huggingface_hub as h; h.hf_hub_download({REPO!r}, 'model.safetensors')"],
                       capture_output=True, timeout=120, env={**self.env, "HF_HUB_DISABLE_XET": "1"}, check=False)
        self.hub.faults.clear()
        self.check_snapshot(repo, list(self.files), self.download())


if __name__ == "__main__":
    main()
