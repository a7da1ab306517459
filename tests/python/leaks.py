"""What the package's own code lost, by LeakSanitizer: Python's own leaks are not looked at.

Reads the frames as tools/python_sanitizers has them written, each with its module.
"""
import ctypes
import os
import re
import tempfile

# Frames that only hand on what their caller allocates.
_RUNTIME = re.compile(r"\(lib(asan|stdc\+\+|c|gcc_s)\.so[^()]*\)$")


def report():
    """LeakSanitizer's report so far, as text. Needs ASan's runtime with detect_leaks=1."""
    check = ctypes.CDLL(None).__lsan_do_recoverable_leak_check
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            check()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        return file.read().decode(errors="replace")


def of_the_package(text):
    """The leaks of a report that code of tokenmill allocated: the first frame that is not a runtime's is its own."""
    leaks = []
    for leak in re.split(r"\n\s*\n", text):
        frames = [line for line in leak.splitlines() if re.match(r"\s*#\d+ ", line)]
        callers = [frame for frame in frames if not _RUNTIME.search(frame)]
        if callers and "(_native." in callers[0]:
            leaks.append(leak.strip())
    return leaks
