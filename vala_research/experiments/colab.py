"""Notebooks on Colab: each has a badge that opens it there, and a cell that installs the library.

    python -m vala_research.experiments.colab       writes badge and cell of every notebook

A fork changes REPOSITORY, the one address, and runs the command. The cell runs on Colab only. It
leaves Colab's torch, Jupyter and plotting packages as they are; `tests/test_colab.py` says which
packages pip replaces.
"""

from __future__ import annotations

import json
from typing import Any

from vala_research.experiments.batches.inspection import notebook_folder
from vala_research.files import write_text

REPOSITORY = "vala-research/vala_research"  # on GitHub
BRANCH = "main"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def badge(notebook: str) -> str:
    """The line that opens a notebook, such as "00_quickstart", on Colab."""
    place = f"github/{REPOSITORY}/blob/{BRANCH}/notebooks/{notebook}.ipynb"
    return f"{BADGE}(https://colab.research.google.com/{place})"


def install_cell() -> str:
    """The code of the cell that installs the library on Colab."""
    address = f"git+https://github.com/{REPOSITORY}@{BRANCH}"
    return (
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f'    %pip install -q "vala-research[colab] @ {address}"'
    )


def prepared(notebook: str, content: dict[str, Any]) -> dict[str, Any]:
    """A notebook's content with badge and cell as they should be."""
    cells = content["cells"]
    title, *text = "".join(cells[0]["source"]).split("\n")
    text = [line for line in text if not line.startswith(BADGE)]
    while text and not text[0]:
        text.pop(0)
    _write(cells[0], "\n".join([title, "", badge(notebook), "", *text]))
    for cell in cells:
        if "google.colab" in "".join(cell["source"]):
            _write(cell, install_cell())
    return content


def _write(cell: dict[str, Any], text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


def main() -> None:
    for path in sorted(notebook_folder().glob("*.ipynb")):
        content = prepared(path.stem, json.loads(path.read_text("utf-8")))
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
