#!/usr/bin/env python3
"""Completion scripts and manual page: made by the program, and understood by the shells and by groff.

  test_completion.py PROGRAM
"""
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = sys.argv[1]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def made(*arguments):
    result = run(PROGRAM, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def long_options(command):
    """What --help of a subcommand lists."""
    return set(re.findall(r"(?m)(?:^ {2}|,)(--[a-z][a-z-]*)", made(command, "--help")))


class Completion(unittest.TestCase):
    def script(self, shell):
        file = tempfile.NamedTemporaryFile("w", suffix="." + shell)
        file.write(made("completion", shell))
        file.flush()
        self.addCleanup(file.close)
        return file.name

    def bash(self, *words):
        """The replies for a command line whose last word is being typed."""
        code = ('source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tokenmill; '
                'printf "%s\\n" "${COMPREPLY[@]}"')
        result = run("bash", "--norc", "-c", code, "bash", self.script("bash"), "tokenmill", *words)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return result.stdout.split()

    def test_bash(self):
        self.assertEqual(self.bash("gen"), ["generate"])
        self.assertIn("--version", self.bash("--v"))
        self.assertEqual(self.bash("generate", "--temp"), ["--temperature"])
        self.assertEqual(self.bash("generate", "-m", "model", "--mem-f"), ["--mem-fraction-static"])
        self.assertEqual(self.bash("verify", "--kind", "ti"), ["tiny"])
        # A value, and what is no option, are left to file names.
        self.assertEqual(self.bash("generate", "--input", "x"), [])
        self.assertEqual(self.bash("generate", "-m", "--t"), [])
        self.assertEqual(self.bash("info", "mod"), [])
        for command in ("generate", "bench", "info", "tokenize", "verify"):
            self.assertEqual(long_options(command) - set(self.bash(command, "-")), set(), command)

    @unittest.skipUnless(shutil.which("zsh"), "not run: no zsh")
    def test_zsh(self):
        script = self.script("zsh")
        self.assertEqual(run("zsh", "-n", script).stderr, "")
        # What the script hands to zsh's own completion functions.
        code = ('_arguments() { print -rl -- "$@" }; _describe() { print -rl -- $commands }; compdef() { :; }; '
                'source $1; words=(tokenmill "${(@)argv[2,-1]}"); CURRENT=$#words; _tokenmill')
        result = run("zsh", "-f", "-c", code, "zsh", script, "generate", "--t")
        self.assertEqual(result.stderr, "")
        shown = set(re.findall(r"(?m)^(--[a-z-]+)=?\[", result.stdout))
        self.assertEqual(long_options("generate") - shown, set())
        self.assertIn("--kind=[", run("zsh", "-f", "-c", code, "zsh", script, "verify", "").stdout)
        self.assertIn("generate:", run("zsh", "-f", "-c", code, "zsh", script, "").stdout)

    @unittest.skipUnless(shutil.which("zsh"), "not run: no zsh")
    def test_zsh_completes_at_a_terminal(self):
        code = ("zmodload zsh/zpty; zpty z zsh -f -i; zpty -w z 'PS1=; PROMPT=; autoload -Uz compinit; compinit -u -D; "
                "source '$1; zpty -w z $'tokenmill generate --frequency-pen\\t'; zpty -r z out '*penalty*'; "
                "print -r -- $out; zpty -d z")
        with tempfile.TemporaryDirectory() as home:
            result = run("zsh", "-f", "-c", code, "zsh", self.script("zsh"), env={"HOME": home, "PATH": "/usr/bin:/bin",
                                                                                "TERM": "dumb"})
        self.assertIn("--frequency-penalty", result.stdout + result.stderr)

    @unittest.skipUnless(shutil.which("fish"), "not run: no fish")
    def test_fish(self):
        script = self.script("fish")

        def complete(line):
            with tempfile.TemporaryDirectory() as home:
                result = run("fish", "--no-config", "-c", f"source {script}; complete -C '{line}'",
                             env={"HOME": home, "PATH": "/usr/bin:/bin"})
            self.assertEqual(result.stderr, "")
            return [row.split("\t")[0] for row in result.stdout.splitlines()]

        self.assertEqual(complete("tokenmill gen"), ["generate"])
        self.assertEqual(complete("tokenmill generate --temper"), ["--temperature"])
        self.assertEqual(complete("tokenmill verify --kind ti"), ["tiny"])
        self.assertEqual(long_options("generate") - set(complete("tokenmill generate --")), set())


class Manual(unittest.TestCase):
    def test_every_command_and_option_is_in_it(self):
        text = made("man").replace("\\-", "-")
        for command in ("generate", "info", "tokenize", "bench", "verify", "version"):
            self.assertIn(f"tokenmill {command}", text)
            for option in long_options(command):
                self.assertIn(f"\\fB{option}\\fR", text)

    @unittest.skipUnless(shutil.which("groff"), "not run: no groff")
    def test_groff_has_nothing_to_complain_of(self):
        result = run("groff", "-man", "-ww", "-Tutf8", "-rLL=78n", input=made("man"))
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        shown = re.sub(".\x08", "", result.stdout)
        for part in ("EXIT STATUS", "--frequency-penalty float", "tokenmill generate"):
            self.assertTrue(part in shown, part)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
