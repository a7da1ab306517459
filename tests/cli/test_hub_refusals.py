#!/usr/bin/env python3
"""What the hub refuses, and what the cache serves without it.

  test_hub_refusals.py PROGRAM TINY_MODEL_FOLDER
"""
import json
import os
import time

from hub_case import REPO, Hub, main


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


if __name__ == "__main__":
    main()
