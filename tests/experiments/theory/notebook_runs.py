"""Run a notebook of the theory and read what it wrote."""

import json
from pathlib import Path

import pandas as pd
import test_notebooks


def run(notebook: str, folder: Path, **parameters) -> tuple[dict, pd.DataFrame]:
    """The parameters that a notebook recorded, and its rows; it writes these files and no more."""
    name, out = notebook.partition("_")[2], folder / "out"
    test_notebooks.run(notebook, folder, output=str(out), **parameters)
    kinds = (".pdf", ".png", ".csv", ".tex", ".json", "_claims.csv")
    assert {p.name for p in out.iterdir()} == {f"{name}{kind}" for kind in kinds} | {"rows.csv"}
    record = json.loads((out / f"{name}.json").read_text())
    assert record["notebook"] == notebook
    return record["parameters"], pd.read_csv(out / "rows.csv")
