#!/usr/bin/env python3
"""Models from a hub: the cache as huggingface_hub lays it out, downloads that break, and refusals.

  test_hub.py PROGRAM TINY_MODEL_FOLDER

The hub is tests/cli/hub_server.py. Where Python has huggingface_hub, it reads our cache and we read its.
"""
import fcntl
import hashlib
import json
import os
import pty
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from hub_server import HubServer, git_sha1  # noqa: E402

try:
    import huggingface_hub
except ImportError:
    huggingface_hub = None

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


class Faults(Hub):
    def test_cut_connections_are_resumed(self):
        repo = self.add()
        size = len(self.files["model.safetensors"])
        for cut in (300_000, 100_000, 0):
            self.hub.fault("model.safetensors", cut=cut)
        self.check_snapshot(repo, list(self.files), self.download())
        ranges = [where for _, _, path, where in self.hub.requests if where and "safetensors" in path]
        self.assertGreater(len(ranges), 1)
        self.assertLess(int(ranges[-1].removeprefix("bytes=").rstrip("-")), size)

    def test_what_an_earlier_download_left_is_used(self):
        repo = self.add()
        data, etag = self.files["model.safetensors"], repo.etag("model.safetensors")
        blobs = os.path.join(self.repo_folder(), "blobs")
        os.makedirs(blobs)
        incomplete = os.path.join(blobs, etag + ".incomplete")
        for left, wanted in ((data[:200_000], "bytes=200000-"), (b"y" * 1000, "bytes=1000-"), (data, None),
                             (data + b"more", None)):
            with open(incomplete, "wb") as file:
                file.write(left)
            before = len(self.hub.requests)
            self.check_snapshot(repo, list(self.files), self.download())
            asked = [where for server, _, path, where in self.hub.requests[before:] if server == "storage"]
            self.assertEqual(asked[:1], [wanted] if len(left) < len(data) else [] if left == data else [None])
            os.remove(os.path.join(blobs, etag))
            os.remove(os.path.join(self.repo_folder(), "snapshots", repo.commit, "model.safetensors"))

    def test_kill_9_and_again(self):
        repo = self.add()
        self.hub.fault("model.safetensors", times=3, slow=0.004)
        incomplete = os.path.join(self.repo_folder(), "blobs", repo.etag("model.safetensors") + ".incomplete")
        for _ in range(3):
            process = subprocess.Popen([PROGRAM, "download", REPO], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       env=self.env)
            there = os.path.getsize(incomplete) if os.path.exists(incomplete) else 0
            while not os.path.exists(incomplete) or os.path.getsize(incomplete) < there + 50_000:
                self.assertIsNone(process.poll())
                time.sleep(0.002)
            process.kill()
            process.wait()
        self.check_snapshot(repo, list(self.files), self.download())
        self.assertGreaterEqual(sum(bool(where) for *_, where in self.hub.requests), 3)

    def test_servers_that_know_no_ranges(self):
        repo = self.add()
        self.hub.no_ranges = True
        self.hub.fault("model.safetensors", cut=500_000)
        self.check_snapshot(repo, list(self.files), self.download())

    def test_a_range_that_is_another(self):
        repo = self.add()
        self.hub.fault("model.safetensors", cut=500_000)
        self.hub.fault("model.safetensors", bad_range=True)
        self.check_snapshot(repo, list(self.files), self.download())

    def test_wrong_content(self):
        repo = self.add()
        self.hub.fault("model.safetensors", wrong=True)
        self.hub.fault("config.json", grow=100)
        self.check_snapshot(repo, list(self.files), self.download())

    def test_content_that_stays_wrong(self):
        for fault, message in (({"wrong": True}, "wrong checksum twice"), ({"grow": 9}, "wrong length twice")):
            for name in ("config.json", "model.safetensors"):
                self.add(commit=hashlib.sha1(repr((fault, name)).encode()).hexdigest())
                self.hub.fault(name, times=2, **fault)
                self.refused(REPO, f"'{name}' came with a {message}", env={"HF_HOME": self.home + "/" + name + message[6]})
                self.hub.faults.clear()
        self.assertFalse(os.path.exists(os.path.join(self.repo_folder(), "refs", "main")))

    def test_a_blob_of_another_length_is_fetched_again(self):
        repo = self.add()
        path = self.download()
        with open(os.path.join(path, "model.safetensors"), "rb+") as file:
            file.truncate(1000)
        self.check_snapshot(repo, list(self.files), self.download())

    def test_passing_trouble(self):
        repo = self.add()
        self.hub.fault("api", status=503)
        self.hub.fault("api", status=429, headers={"Retry-After": "1"})
        self.hub.fault("config.json", status=500)
        self.hub.fault("model.safetensors", status=429, headers={"Retry-After": "0"})
        began = time.monotonic()
        self.check_snapshot(repo, list(self.files), self.download())
        self.assertGreater(time.monotonic() - began, 1)

    def test_too_many_requests(self):
        self.add()
        self.hub.fault("api", times=9, status=429, headers={"Retry-After": "3600"})
        self.refused(REPO, "429", "try again in 3600 seconds", "HF_TOKEN")
        self.assertEqual(self.hub.count("/api/"), 1)  # told, not slept through

    def test_a_server_that_goes_silent(self):
        repo = self.add()
        self.hub.fault("model.safetensors", stall=30)
        self.check_snapshot(repo, list(self.files), self.download(env={"HF_HUB_DOWNLOAD_TIMEOUT": "1"}))

    def test_another_process(self):
        repo = self.add()
        self.hub.fault("model.safetensors", slow=0.002)
        both = [subprocess.Popen([PROGRAM, "download", REPO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.env,
                                 text=True) for _ in range(2)]
        results = [process.communicate() for process in both]
        for (out, errors), process in zip(results, both):
            self.assertEqual(process.returncode, 0, errors)
            self.check_snapshot(repo, list(self.files), out.strip())
        self.assertEqual(self.hub.count("model.safetensors", "storage"), 1)

    def test_a_lock_that_another_tool_holds(self):
        repo = self.add()
        folder = os.path.join(self.cache, ".locks", "models--org--tiny")
        os.makedirs(folder)
        with open(os.path.join(folder, repo.etag("model.safetensors") + ".lock"), "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            process = subprocess.Popen([PROGRAM, "download", REPO], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       env=self.env, text=True)
            line = ""
            while "Waiting for another download of org/tiny/model.safetensors" not in line:
                line = process.stderr.readline()
                self.assertNotEqual(line, "")
            self.assertEqual(self.hub.count("model.safetensors", "storage"), 0)
        out, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.check_snapshot(repo, list(self.files), out.strip())

    def test_a_full_disk(self):
        repo = self.add()

        def small_files():
            import resource
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        self.refused("'model.safetensors' cannot be written to", "File too large", "make room or set HF_HUB_CACHE",
                     preexec_fn=small_files)
        self.check_snapshot(repo, list(self.files), self.download())
        self.assertIn("bytes=100000-", [where for *_, where in self.hub.requests])

    def test_more_than_the_disk_has(self):
        repo = self.add()
        big = {"rfilename": "model.safetensors", "size": 1 << 60, "blobId": "0" * 40}
        listing = json.dumps({"sha": repo.commit, "siblings": [{"rfilename": "config.json", "size": 2, "blobId": "1" * 40},
                                                               big]}).encode()

        def listed(handler, *_):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(listing)))
            handler.end_headers()
            handler.wfile.write(listing)
        self.hub.hub.RequestHandlerClass.listing = listed
        self.refused(REPO, "needs 92233.7", " GB more in", "make room")

    def test_names_that_lead_out_of_the_cache(self):
        self.add({**self.files, "../../evil.json": b"x", "/etc/evil": b"y"})
        self.download()
        names = {name for _, folders, files in os.walk(self.home) for name in files + folders}
        self.assertFalse({name for name in names if "evil" in name})
        index = {"weight_map": {"a": "../../../../evil.safetensors"}}
        self.add({"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()})
        self.refused("weight_map.a", "must name a file of the repository")

    def test_a_cache_that_cannot_be_written(self):
        self.add()
        path = os.path.join(self.home, "file")
        with open(path, "w", encoding="utf-8") as file:
            file.write("x")
        self.refused("cannot be written", "HF_HUB_CACHE", args=("--download-dir", path + "/sub"))


class Refusals(Hub):
    def test_no_such_repository(self):
        self.refused(REPO, "knows no such repository, or it is private", "401", "set HF_TOKEN")
        self.refused(REPO, "no such repository or revision", env={"HF_TOKEN": "t"})

    def test_gated(self):
        self.add(gated=True, token="right")
        for env in ({}, {"HF_TOKEN": "wrong"}):
            self.refused(REPO, "access is gated", self.hub.endpoint + "/" + REPO, "HF_TOKEN", env=env)
        self.download(env={"HF_TOKEN": " right\n"})

    def test_private_by_token_file(self):
        self.add(private=True, token="secret")
        self.refused("it is private")
        with open(os.path.join(self.home, "token"), "w", encoding="utf-8") as file:
            file.write("secret\n")
        self.refused("it is private", env={"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})
        # The token stays with the hub: the storage server would refuse it.
        self.download()
        self.assertGreater(self.hub.count("model.safetensors", "storage"), 0)
        elsewhere = os.path.join(self.home, "t2")
        os.rename(os.path.join(self.home, "token"), elsewhere)
        self.download("--download-dir", self.home + "/x", env={"HF_TOKEN_PATH": elsewhere})

    def test_a_token_is_never_shown(self):
        errors = self.refused(REPO, env={"HF_TOKEN": "hf_topsecret"})
        self.assertNotIn("topsecret", errors)

    def test_pickled_weights_only(self):
        self.add({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
        self.refused(REPO, "holds pickled weights only ('pytorch_model.bin')", "can run code")
        self.assertEqual(self.hub.count("/resolve/"), 0)

    def test_no_model(self):
        self.add({"README.md": b"data"})
        self.refused(REPO, "holds no config.json and no .gguf file")
        self.add({"config.json": b"{}"})
        self.refused(REPO, "holds no weights")

    def test_no_network(self):
        self.hub.close()
        began = time.monotonic()
        self.refused(REPO, "cannot be fetched from " + self.hub.endpoint, "check the network", "no such local path")
        self.assertLess(time.monotonic() - began, 20)

    def test_what_is_no_hub(self):
        self.hub.hub.RequestHandlerClass.listing = lambda handler, *_: handler.refuse(200, "", "hello")
        self.add()
        self.refused("must list a commit and its files", "HF_ENDPOINT")

    def test_not_a_hub_id(self):
        self.refused("no such file or folder", model="a/b/c")
        self.refused("no such file or folder", model="org/../x")
        self.assertEqual(self.hub.requests, [])


class Offline(Hub):
    def test_offline(self):
        self.add()
        env = {"HF_HUB_OFFLINE": "1"}
        self.refused(REPO, "'main' is not, or not whole, in the Hugging Face cache", "HF_HUB_OFFLINE is set", env=env)
        self.assertEqual(self.hub.requests, [])
        path = self.download()
        before = len(self.hub.requests)
        self.assertEqual(self.download(env=env), path)
        self.assertEqual(len(self.hub.requests), before)
        os.remove(os.path.join(path, "model.safetensors"))
        self.refused("holds no weights", env=env)

    def test_the_cache_serves_when_the_hub_does_not_answer(self):
        self.add()
        path = self.download()
        self.hub.fault("api", times=5, status=500)
        result = self.run_cli("download", REPO)
        self.assertEqual(result.stdout.strip(), path)
        self.assertIn("the copy in the cache is used", result.stderr)
        self.hub.close()
        result = self.run_cli("download", REPO)
        self.assertEqual(result.stdout.strip(), path)
        self.assertIn("check the network", result.stderr)

    def test_a_refusal_is_told_in_spite_of_the_cache(self):
        repo = self.add()
        self.download()
        repo.gated = True
        self.refused("access is gated")


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
    unittest.main(argv=sys.argv[:1], verbosity=1)
