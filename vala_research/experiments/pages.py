"""Writes the tables of four pages from the rows in notebooks/results/.

`python -m vala_research.experiments.pages` writes each table between its two marks: of README.md,
notebooks/README.md, notebooks/results/README.md and theory/README.md. page_tables/ says what stands
in them. Others are texts with fields in notebooks/results/, such as headline.md, the results of
README.md. A test compares the pages with the rows.
"""

from __future__ import annotations

from pathlib import Path

from vala_research import InputError
from vala_research.experiments.batches.inspection import notebook_folder
from vala_research.experiments.kept_runs import written_runs
from vala_research.experiments.page_fields import filled
from vala_research.experiments.page_tables import TABLES
from vala_research.experiments.page_tables.theory import THEORY
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
    """The pages as they should be."""
    folder = notebook_folder()
    results, top = folder / "results", folder.parent
    texts = {
        path.stem: filled(path.read_text("utf-8")).strip()
        for path in sorted(results.glob("*.md"))
        if path.stem != "README"
    }
    tables = {name: table.written() for name, table in TABLES.items()}
    parts = {
        top / "README.md": {"headline": texts.pop("headline")},
        folder / "README.md": {"map": written_map(), **texts, **tables},
        results / "README.md": {"runs": written_runs()},
        top / "theory" / "README.md": {name: table.written() for name, table in THEORY.items()},
    }
    pages = {}
    for path, named in parts.items():
        page = path.read_text("utf-8")
        for name, text in named.items():
            page = replaced(page, name, text)
        pages[path] = page
    return pages


def main() -> None:
    """Write the pages."""
    for path, text in written_pages().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
