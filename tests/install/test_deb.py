#!/usr/bin/env python3
"""The Debian packages: what they ask for is enough, what is in them runs where nothing else is, lintian has no errors.

  test_deb.py SOURCE_FOLDER BUILD_FOLDER CPACK
"""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE, BUILD, CPACK = sys.argv[1:4]
MODEL = os.path.join(SOURCE, "tests/data/tiny/stories260k")
GENERATE = ["generate", "-m", "model", "--skip-tokenizer-init", "--num-threads", "1", "--max-total-tokens", "2048",
            "--input", "in.jsonl"]


def run(*command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
                            **options)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{result.stdout}")
    return result.stdout


def put_packages_files(package, root, done):
    """Copies the shared libraries of an installed package, and of what it depends on, into a root."""
    if package in done:
        return
    done.add(package)
    status = subprocess.run(["dpkg-query", "-W", "-f", "${Depends}", package], capture_output=True, text=True)
    if status.returncode != 0:
        return
    for path in run("dpkg", "-L", package).splitlines():
        if ".so" in path and os.path.exists(path) and not os.path.isdir(path):
            target = root + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(os.path.realpath(path), target)
    for name in re.findall(r"(?:^|, )([a-z0-9][a-z0-9+.-]*)", status.stdout):
        put_packages_files(name, root, done)


@unittest.skipUnless(shutil.which("dpkg-shlibdeps"), "not run: no dpkg-shlibdeps (package dpkg-dev)")
class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        run(CPACK, "--config", os.path.join(BUILD, "CPackConfig.cmake"), "-B", cls.folder.name)
        cls.debs = {}
        for path in glob.glob(os.path.join(cls.folder.name, "*.deb")):
            cls.debs[run("dpkg-deb", "-f", path, "Package").strip()] = path
        cls.library = next(name for name in cls.debs if re.fullmatch(r"libtokenmill[0-9.]+", name))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def contents(self, package):
        return [line.split()[5].lstrip(".") for line in run("dpkg-deb", "-c", self.debs[package]).splitlines()]

    def field(self, package, field):
        return run("dpkg-deb", "-f", self.debs[package], field).strip()

    def test_what_is_in_each(self):
        self.assertEqual(set(self.debs), {"tokenmill", self.library, "libtokenmill-dev"})
        version = self.field("tokenmill", "Version").split("-")[0]
        for path in ("/usr/bin/tokenmill", "/usr/share/man/man1/tokenmill.1.gz",
                     "/usr/share/bash-completion/completions/tokenmill",
                     "/usr/share/zsh/vendor-completions/_tokenmill",
                     "/usr/share/fish/vendor_completions.d/tokenmill.fish"):
            self.assertIn(path, self.contents("tokenmill"))
        self.assertIn(f"libtokenmill.so.{version}", " ".join(self.contents(self.library)))
        self.assertFalse([path for path in self.contents(self.library) if path.endswith((".h", ".a", ".so"))])
        dev = " ".join(self.contents("libtokenmill-dev"))
        for part in ("/usr/include/tokenmill/engine.h", "libtokenmill.a", "libtokenmill.so", "tokenmillConfig.cmake",
                     "tokenmill.pc"):
            self.assertIn(part, dev)
        for package in self.debs:
            self.assertIn(f"/usr/share/doc/{package}/copyright", self.contents(package))

    def test_dependencies(self):
        for package in ("tokenmill", self.library):
            depends = self.field(package, "Depends")
            self.assertRegex(depends, r"libc6 \(>= [0-9.]+\)")
            self.assertIn("libstdc++6", depends)
            # Inside, not asked for: whichever versions the user's system has do not matter.
            self.assertNotRegex(depends, "spdlog|fmt")
        self.assertIn(f"{self.library} (=", self.field("libtokenmill-dev", "Depends"))
        self.assertIn("Architecture: amd64", run("dpkg-deb", "-I", self.debs["tokenmill"]).replace(" A", "A"))

    def root_with(self, *packages):
        """A root that holds these packages and the libraries of what they depend on, and nothing else."""
        root = tempfile.mkdtemp(dir=self.folder.name)
        done = set()
        for package in packages:
            run("dpkg", "-x", self.debs[package], root)
            for name in re.findall(r"(?:^|, )([a-z0-9][a-z0-9+.-]*)", self.field(package, "Depends")):
                if name not in self.debs:
                    put_packages_files(name, root, done)
        # Debian's /lib and /lib64 lie in /usr.
        for name in ("lib", "lib64"):
            if os.path.isdir(os.path.join(root, name)):
                shutil.copytree(os.path.join(root, name), os.path.join(root, "usr", name), dirs_exist_ok=True)
                shutil.rmtree(os.path.join(root, name))
            if os.path.isdir(os.path.join(root, "usr", name)):
                os.symlink(f"usr/{name}", os.path.join(root, name))
        loader = "/lib64/ld-linux-x86-64.so.2"
        if not os.path.exists(root + loader):
            os.makedirs(root + "/usr/lib64", exist_ok=True)
            if not os.path.lexists(root + "/lib64"):
                os.symlink("usr/lib64", root + "/lib64")
            shutil.copy2(os.path.realpath(loader), root + loader)
        return root

    def chroot(self, root, *command):
        enter = ["chroot", root] if os.geteuid() == 0 else ["unshare", "-r", "chroot", root]
        probe = subprocess.run([*enter, "/usr/bin/tokenmill", "version"], capture_output=True, text=True)
        if probe.returncode != 0 and os.geteuid() != 0 and "unshare" in probe.stderr:
            self.skipTest("not run: neither root nor user namespaces")
        return run(*enter, *command)

    def test_the_program_runs_where_nothing_else_is(self):
        root = self.root_with("tokenmill")
        self.assertEqual(sorted(os.listdir(root + "/usr/bin")), ["tokenmill"])
        shutil.copytree(MODEL, root + "/model")
        os.makedirs(root + "/proc", exist_ok=True)
        with open(root + "/in.jsonl", "w", encoding="utf-8") as file:
            file.write(json.dumps({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4, "temperature": 0}}))
        version = self.field("tokenmill", "Version").split("-")[0]
        self.assertEqual(self.chroot(root, "/usr/bin/tokenmill", "version").strip(), version)
        output = self.chroot(root, "/usr/bin/tokenmill", *GENERATE, "--output", "out.jsonl")
        with open(root + "/out.jsonl", encoding="utf-8") as file:
            ids = json.loads(file.readline())["output_ids"]
        self.assertEqual(len(ids), 4, output)

    @unittest.skipUnless(shutil.which("lintian"), "not run: no lintian")
    def test_lintian_finds_no_error(self):
        # Not packages of Debian itself: no bug number closes with them, and the maintainer is no mailbox.
        tags = "initial-upload-closes-no-bugs,bogus-mail-host,bogus-mail-host-in-debian-changelog"
        result = subprocess.run(["lintian", "--allow-root", "--fail-on", "error", "--suppress-tags", tags,
                                 *self.debs.values()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
