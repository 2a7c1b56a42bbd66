"""Writes the tables of README.md and notebooks/README.md from the rows in notebooks/results/.

`python -m vala_research.experiments.pages` writes each table between its two marks. page_tables.py
says what stands in those of notebooks/README.md. The headline results of README.md are a text with
fields, notebooks/results/headline.md. A test compares the pages with the rows.
"""

from __future__ import annotations

from pathlib import Path

from vala_research import InputError
from vala_research.experiments.batches.inspection import notebook_folder
from vala_research.experiments.page_cells import filled
from vala_research.experiments.page_tables import TABLES
from vala_research.experiments.paper_map import written_map
from vala_research.files import write_text


def replaced(page: str, name: str, text: str) -> str:
    """A page with what stands between the two marks of a name replaced.

    Raises InputError if the page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise InputError(f"The page has no lines {begin} and {end}: write them where it goes.")
    return f"{before}{begin}\n{text}\n{end}{after}"


def written_pages() -> dict[Path, str]:
    """Both pages as they should be."""
    top, page = notebook_folder().parent / "README.md", notebook_folder() / "README.md"
    text = replaced(page.read_text("utf-8"), "map", written_map())
    for name, table in TABLES.items():
        text = replaced(text, name, table.written())
    headline = filled((page.parent / "results" / "headline.md").read_text("utf-8")).strip()
    return {top: replaced(top.read_text("utf-8"), "headline", headline), page: text}


def main() -> None:
    """Write both pages."""
    for path, text in written_pages().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
