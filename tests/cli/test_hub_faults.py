#!/usr/bin/env python3
"""Downloads that break: cut, wrong, slow, in two processes at once, on a full disk.

  test_hub_faults.py PROGRAM TINY_MODEL_FOLDER
"""
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time
from email.utils import formatdate

from hub_case import PROGRAM, REPO, Hub, main


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
        self.hub.fault("api", status=429, headers={"Retry-After": formatdate(time.time() + 2, usegmt=True)})
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


if __name__ == "__main__":
    main()
