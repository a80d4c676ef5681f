"""docs/notebook.ipynb runs as it is, from beginning to end, in a kernel of its own."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs/notebook.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert cells and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The source of each code cell, and what it showed, by kind of output."""
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason='needs pip install -e ".[notebook]"')
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))  # no settings of the user's
        patch.setenv("MPLCONFIGDIR", str(folder))
        manager = KernelManager(kernel_name="python3")
        manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]  # type: ignore[attr-defined]
        NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


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
    assert following == "s" and re.match(r"the cat (sees|hears|follows) the ", continued) and every.count("'") == 14
    assert "rgba" in shown(outputs, "model.show(")
    assert "temperature 1.5: " in shown(outputs, "temperature in")
    assert "epoch 3" in shown(outputs, "longer = ")
    assert "LSTM" in shown(outputs, "pl.Trainer(")
    assert float(shown(outputs, "model.score(").splitlines()[0]) < 0.7
