#!/usr/bin/env python3
"""Fetches the demo model and prints its path: what tokenmill.demo_model() does, without the package installed."""
import os
import runpy

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
runpy.run_path(os.path.join(ROOT, "bindings", "python", "tokenmill", "_demo_model.py"), run_name="__main__")
