"""docs/notebook.ipynb runs as it is, from beginning to end, in a kernel of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT, of_extra

NOTEBOOK = ROOT / "docs/notebook.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert cells and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


EXECUTE = """
import json, sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300).execute()
print(json.dumps(notebook.cells))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The source of each code cell, and what it showed, by kind of output."""
    for package in ("nbclient", "ipykernel"):
        of_extra("notebook", package)
    folder = tmp_path_factory.mktemp("notebook")
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder), "MPLCONFIGDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK)], cwd=folder, env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {cell["source"]: cell["outputs"] for cell in json.loads(done.stdout) if cell["cell_type"] == "code"}


def shown(outputs: dict[str, Any], source: str) -> str:
    """All text and HTML below the cell that contains `source`."""
    (found,) = [output for code, output in outputs.items() if source in code]
    parts = [part.get("text", "") + "".join(str(v) for v in part.get("data", {}).values()) for part in found]
    return "\n".join(parts)


def test_every_cell_runs_and_shows_what_its_text_promises(outputs: dict[str, Any]) -> None:
    trained = shown(outputs, "result = charlm.train")
    assert "epoch 2" in trained and "Result" in trained and "Traceback" not in str(outputs)
    assert len(re.findall(r"row 1", shown(outputs, "show_batch"))) == 2
    assert "GRU" in shown(outputs, "charlm.load(result.folder)") and "validation loss" in shown(
        outputs, "result.folder)"
    )
    following, continued, every = shown(outputs, "get_nexts").splitlines()[:3]
    assert following == "s" and continued.startswith("the cat follows the ") and every.count("'") == 14
    assert "rgba" in shown(outputs, "model.show(")
    assert "temperature 1.5: " in shown(outputs, "temperature in")
    assert "epoch 3" in shown(outputs, "longer = ")
    assert "LSTM" in shown(outputs, "pl.Trainer(")
    assert float(shown(outputs, "model.score(").splitlines()[0]) < 0.7
