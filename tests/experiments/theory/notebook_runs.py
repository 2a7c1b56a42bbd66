"""One way to run a notebook of the theory and look at what it wrote."""

import json
from pathlib import Path

import pandas as pd
import papermill

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def run(notebook: str, folder: Path, **parameters) -> tuple[dict, pd.DataFrame]:
    """The parameters that the notebook recorded, and its rows; it wrote these files and no more."""
    name, out = notebook.partition("_")[2], folder / "out"
    papermill.execute_notebook(
        NOTEBOOKS / f"{notebook}.ipynb", folder / "run.ipynb", parameters | {"output": str(out)},
        cwd=NOTEBOOKS, progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    kinds = (".pdf", ".png", ".csv", ".json", "_claims.csv")
    assert {p.name for p in out.iterdir()} == {f"{name}{kind}" for kind in kinds} | {"rows.csv"}
    record = json.loads((out / f"{name}.json").read_text())
    assert record["notebook"] == notebook
    return record["parameters"], pd.read_csv(out / "rows.csv")
