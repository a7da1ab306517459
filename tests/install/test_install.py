#!/usr/bin/env python3
"""Installs the build, and builds and runs a project of its own against it in every way users have, by g++ and clang.

  test_install.py SOURCE_FOLDER BUILD_FOLDER CARGO_TARGET_FOLDER CXX
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE, BUILD, CARGO, CXX = sys.argv[1:5]
HERE = os.path.dirname(os.path.abspath(__file__))
CONSUMER = os.path.join(HERE, "consumer")
MODEL = os.path.join(SOURCE, "tests/data/tiny/stories260k")
CLANG = shutil.which("clang++-19") or shutil.which("clang++")
COMPILERS = [CXX] + ([CLANG] if CLANG else [])
STRICT = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
# The system's own; everything else is inside the library or a documented dependency.
NEEDED = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2",
          "libcublas.so.12", "libcublas.so.13"}


def run(*command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
                            **options)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{result.stdout}")
    return result.stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        first = os.path.join(cls.folder.name, "first")
        run("cmake", "--install", BUILD, "--prefix", first)
        # What is used below is a tree that was moved after its installation.
        cls.prefix = os.path.join(cls.folder.name, "moved")
        os.rename(first, cls.prefix)
        cls.lib = os.path.dirname(cls.find("libtokenmill.a"))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def find(cls, name):
        for folder, _, names in os.walk(cls.prefix):
            if name in names:
                return os.path.join(folder, name)
        raise AssertionError(f"{name} was not installed")

    def check_program(self, program, shared):
        environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
        linked = run("readelf", "-d", program)
        self.assertEqual("libtokenmill.so" in linked, shared, linked)
        self.assertRegex(run(program, MODEL, env=environment), r"^ok \d+\.\d+\.\d+\n$")

    def configure_consumer(self, build, compiler, *arguments):
        run("cmake", "-G", "Ninja", "-S", CONSUMER, "-B", build, f"-DCMAKE_CXX_COMPILER={compiler}",
            "-DCMAKE_BUILD_TYPE=Release", *arguments)

    def build_consumer(self, name, compiler, *arguments):
        build = os.path.join(self.folder.name, f"{name}-{os.path.basename(compiler)}")
        self.configure_consumer(build, compiler, *arguments)
        run("ninja", "-C", build, "consumer")
        return os.path.join(build, "consumer")

    def test_find_package(self):
        for compiler in COMPILERS:
            for component, shared in (("shared", True), ("static", False), ("", True)):
                with self.subTest(compiler=compiler, component=component):
                    program = self.build_consumer(f"package-{component}", compiler,
                                                  f"-DCMAKE_PREFIX_PATH={self.prefix}",
                                                  f"-DTOKENMILL_COMPONENT={component}")
                    self.check_program(program, shared)

    def test_find_package_follows_build_shared_libs(self):
        program = self.build_consumer("package-static-by-default", CXX, f"-DCMAKE_PREFIX_PATH={self.prefix}",
                                      "-DBUILD_SHARED_LIBS=OFF")
        self.check_program(program, False)

    def test_find_package_tells_what_is_not_there(self):
        with self.assertRaisesRegex(AssertionError, "tensorrt"):
            self.build_consumer("package-wrong", CXX, f"-DCMAKE_PREFIX_PATH={self.prefix}",
                                "-DTOKENMILL_COMPONENT=tensorrt")

    @unittest.skipUnless(shutil.which("pkg-config"), "not run: no pkg-config")
    def test_pkg_config(self):
        environment = {**os.environ, "PKG_CONFIG_PATH": os.path.join(self.lib, "pkgconfig")}
        version = run("pkg-config", "--modversion", "tokenmill", env=environment).strip()
        self.assertEqual(version, run(os.path.join(self.prefix, "bin/tokenmill"), "version").strip())
        only_static = os.path.join(self.folder.name, "only-static")
        shutil.copytree(self.lib, only_static, ignore=shutil.ignore_patterns("*.so*"))
        for compiler in COMPILERS:
            flags = run("pkg-config", "--cflags", "--libs", "tokenmill", env=environment).split()
            program = os.path.join(self.folder.name, f"pkg-{os.path.basename(compiler)}")
            run(compiler, *STRICT, os.path.join(CONSUMER, "main.cc"), "-o", program, *flags,
                f"-Wl,-rpath,{self.lib}")
            self.check_program(program, True)
            flags = run("pkg-config", "--static", "--cflags", "--libs", "tokenmill", env=environment).split()
            # Beside a shared library the linker would take that one.
            flags = [f"-L{only_static}" if flag.startswith("-L") and os.path.samefile(flag[2:], self.lib) else flag
                     for flag in flags]
            run(compiler, *STRICT, os.path.join(CONSUMER, "main.cc"), "-o", program + "-static", *flags)
            self.check_program(program + "-static", False)

    def test_as_a_part_of_another_build(self):
        source = [f"-DTOKENMILL_SOURCE={SOURCE}", f"-DTOKENMILL_CARGO_TARGET_DIR={CARGO}"]
        for fetch in ("OFF", "ON"):
            # Beside the project's own build, so that ccache knows every file of it.
            with self.subTest(FetchContent=fetch), tempfile.TemporaryDirectory(
                    prefix="build-consumer-", dir=os.path.dirname(BUILD)) as build:
                self.configure_consumer(build, CXX, *source, f"-DUSE_FETCHCONTENT={fetch}")
                run("ninja", "-C", build, "consumer", env={**os.environ, "CCACHE_NOHASHDIR": "1"})
                self.check_program(os.path.join(build, "consumer"), False)
                self.assertNotIn("bin", os.listdir(build))  # nothing but the library was asked for

    def test_each_public_header_reads_alone_and_needs_the_standard_library_only(self):
        folder = os.path.join(self.prefix, "include/tokenmill")
        headers = sorted(os.listdir(folder))
        self.assertIn("engine.h", headers)
        for compiler in COMPILERS:
            for header in headers:
                run(compiler, *STRICT, "-fsyntax-only", "-x", "c++", "-I", os.path.join(self.prefix, "include"), "-",
                    input=f'#include "tokenmill/{header}"\n')

    def test_the_shared_library_shows_the_public_names_only(self):
        library = self.find("libtokenmill.so")
        self.assertTrue(os.path.islink(library))
        dynamic = run("readelf", "-d", library)
        self.assertRegex(dynamic, r"SONAME.*\[libtokenmill\.so\.\d+\.\d+\]")
        self.assertEqual(set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) - NEEDED, set())
        self.assertNotIn("RUNPATH", dynamic)
        names = [line.split(maxsplit=2)[2] for line in run("nm", "-DC", "--defined-only", library).splitlines()]
        public = re.compile(r"^(TOKENMILL_0|(typeinfo( name)?|vtable) for tokenmill::Error|"
                            r"tokenmill::(Engine|Stream|Error|SamplingParams|ServerArgs|PinnedPrefix)::(?!Impl)|"
                            r"tokenmill::[a-z_]+[\[(])")
        names = [re.sub(r"@@TOKENMILL_0$", "", name) for name in names]
        self.assertEqual([name for name in names if not public.match(name)], [])
        for start in ("tokenmill::Engine::Engine(", "tokenmill::Stream::next_async(", "tokenmill::version[abi:cxx11]()",
                      "tokenmill::to_json", "tokenmill::download_model",
                      "tokenmill::ServerArgs::validate"):
            self.assertTrue([name for name in names if name.startswith(start)], start)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[5:])
