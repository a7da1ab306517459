"""scikit-build-core, after a look whether the compilers are there: where they are not, one line says what to run."""
import os
import subprocess
import sys

from scikit_build_core.build import *  # noqa: F401,F403  (the hooks that are not wrapped below)
from scikit_build_core import build as _build

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def _require_toolchain():
    result = subprocess.run([os.path.join(ROOT, "tools", "setup"), "--check"], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(result.stderr.strip().splitlines()[-1])


def get_requires_for_build_wheel(config_settings=None):
    _require_toolchain()
    return _build.get_requires_for_build_wheel(config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _require_toolchain()
    return _build.build_wheel(wheel_directory, config_settings, metadata_directory)
