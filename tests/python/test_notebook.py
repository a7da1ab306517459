"""The notebook: on a real kernel, as a plain script, and cell by cell in an interactive interpreter."""
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT, demo_model_path

NOTEBOOK = os.path.join(ROOT, "examples", "python", "offline_engine.ipynb")


def code_cells():
    with open(NOTEBOOK, encoding="utf-8") as file:
        return ["".join(cell["source"]) for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def environment(tmp_path):
    """demo_model() finds the model in a cache of the test's own."""
    model = demo_model_path()
    if model is None:
        pytest.skip("not run: the demo model is not here")
    (tmp_path / "models").mkdir()
    os.symlink(model, tmp_path / "models" / os.path.basename(model))
    return {**os.environ, "TOKENMILL_CACHE": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_PLATFORM_DIRS": "1"}


def test_on_a_kernel(environment, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs if output.output_type == "display_data"]
    assert sum("Generated text" in output.data["text/html"] for output in shown) == 8
    printed = "".join(output.text for cell in cells for output in cell.outputs
                      if output.output_type == "stream" and output.name == "stdout")
    assert printed.count("Generated text: ") == 8  # four streams, twice
    assert "<br>" in shown[1].data["text/html"] or any("<br>" in output.data["text/html"] for output in shown)


def test_as_a_script(environment, tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(code_cells()), encoding="utf-8")
    result = subprocess.run([sys.executable, "-X", "dev", "-W", "error", str(script)], capture_output=True, text=True,
                            timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Generated text: ") == 16


def test_cell_by_cell_interactively(environment, tmp_path):
    lines = []
    for i, cell in enumerate(code_cells()):
        (tmp_path / f"cell{i}.py").write_text(cell, encoding="utf-8")
        lines.append(f"exec(compile(open({str(tmp_path / f'cell{i}.py')!r}).read(), 'cell{i}', 'exec'))")
    result = subprocess.run([sys.executable, "-i", "-q"], input="\n".join(lines) + "\n", capture_output=True, text=True,
                            timeout=300, env=environment)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert result.stdout.count("Generated text: ") == 16


def test_asyncio_is_patched_under_ipython_only(python):
    plain = python("import asyncio\nrun = asyncio.run\nimport tokenmill.utils\nprint(asyncio.run is run)")
    assert plain.stdout == "True\n", plain.stderr


def test_asyncio_run_within_a_loop():
    pytest.importorskip("ipykernel")
    code = """
import asyncio
run = asyncio.run
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.instance()
import tokenmill
assert asyncio.run is run
import tokenmill.utils

async def inner(value):
    await asyncio.sleep(0)
    if value is None:
        raise LookupError("inner")
    return value

async def cell():
    assert asyncio.run(inner(3)) == 3
    try:
        asyncio.run(inner(None))
    except LookupError as error:
        print(error)

asyncio.run(cell())
tokenmill.utils.restore_asyncio()
assert asyncio.run is run
tokenmill.utils.print_highlight("<b>")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "inner\n<b>\n"), result.stderr
