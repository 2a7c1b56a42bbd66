"""A static page of all published figures: picture, claims with verdicts, origin, how to repeat."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vala_research.evaluation.provenance import notebook_sources
from vala_research.experiments.batches.cells import RUN
from vala_research.experiments.batches.redraw import records
from vala_research.files import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1, h2 { line-height: 1.2; } h2 { border-top: 1px solid #ccc; padding-top: 1.5rem; }
img { max-width: 100%; border: 1px solid #eee; } code, pre { font-size: 13px; }
pre { background: #f6f6f6; padding: .5rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .15rem .6rem;
        text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
.confirmed { color: #007a4d; } .contradicted { color: #b3470f; } .not { color: #666; }
nav { columns: 3 14rem; font-size: 14px; } summary { cursor: pointer; color: #555; }
"""


def write_gallery(folder: Path) -> Path:
    """Write `folder`/index.html of all notebooks whose figures lie below the folder."""
    places = sorted(p for p in folder.iterdir() if (p / RUN).is_file())
    sections = [(place, _title(place), _section(folder, place)) for place in places]
    links = "".join(
        f'<li><a href="#{escape(place.name)}">{escape(place.name[:2])} {_marked(title)}</a></li>'
        for place, title, _ in sections
    )
    body = "".join(text for *_, text in sections)
    return write_text(
        folder / "index.html",
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Figures of vala_research'
        f"</title><style>{STYLE}</style><h1>Figures of vala_research</h1><nav><ul>{links}</ul>"
        f"</nav>{body}</html>\n",
    )


def _section(folder: Path, place: Path) -> str:
    """One notebook: its text, then each of its figures."""
    figures = "".join(_figure(folder, path, record) for path, record in records(place))
    name = escape(place.name)
    return (
        f'<h2 id="{name}">{_marked(_title(place))}</h2>{_caption(place)}{figures}'
        f'<p><a href="{name}/{RUN}">the executed notebook</a></p>'
    )


def _figure(folder: Path, path: Path, record: dict[str, Any]) -> str:
    """One figure with its claims, files and origin."""
    base = path.relative_to(folder).with_suffix("").as_posix()
    files = [f for f in sorted(path.parent.glob(f"{path.stem}*")) if _belongs(f, path)]
    links = ", ".join(
        f'<a href="{escape(f.relative_to(folder).as_posix())}">{escape(f.name)}</a>' for f in files
    )
    facts = {
        "paper": record.get("paper"), "figure": record["figure"], "date": record.get("date"),
        "duration": f"{record['seconds']:.0f} s" if record.get("seconds") else None,
        "device": record.get("device"), "model": record.get("model", {}).get("name"),
        "library": f"{record['versions'].get('vala_research')}, commit {record.get('commit')}"
        + (", with changed files" if record.get("dirty") else ""),
        "parameters": json.dumps(record["parameters"]),
    }  # fmt: skip
    rows = "".join(
        f"<tr><th>{key}</th><td>{escape(str(value))}</td></tr>"
        for key, value in facts.items() if value
    )  # fmt: skip
    again = record.get("command") or "run the notebook again"
    return (
        f'<figure><img src="{escape(base)}.png" alt="{escape(path.stem)}" loading="lazy">'
        f"<figcaption>{_claims(path)}</figcaption></figure><p>{links}</p>"
        f"<pre>{escape(again)}</pre><details><summary>origin</summary><table>{rows}</table>"
        "</details>"
    )


def _belongs(file: Path, record: Path) -> bool:
    """Whether a file is one of the figure's own, and not of a figure whose name is longer."""
    rest = file.name[len(record.stem) :]
    return rest.startswith(".") or rest in ("_claims.csv", "_rows.csv")


def _claims(path: Path) -> str:
    """The claims beside a figure, with verdicts and intervals."""
    claims = path.with_name(f"{path.stem}_claims.csv")
    if not claims.is_file():
        return ""
    with claims.open(encoding="utf-8", newline="") as file:
        lines = "".join(_claim(row) for row in csv.DictReader(file))
    head = "<tr><th>verdict</th><th>claim</th><th>measured</th></tr>"
    return f"<table>{head}{lines}</table>"


def _claim(row: dict[str, str]) -> str:
    ends = [_short(row[key]) for key in ("low", "high") if row.get(key)]
    interval = f" [{', '.join(ends)}]" if len(ends) == 2 else ""
    word = row["verdict"].split()[0]
    return (
        f'<tr><td class="{escape(word)}">{escape(row["verdict"])}</td>'
        f"<td>{escape(row['sentence'])}</td>"
        f"<td>{escape(row['measured'])} {_short(row['value'])}{interval}</td></tr>"
    )


def _short(number: str) -> str:
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return escape(number)


def _texts(place: Path) -> Sequence[str]:
    """Sources of the executed notebook's markdown cells."""
    return notebook_sources((place / RUN).read_text("utf-8"), "markdown")


def _title(place: Path) -> str:
    lines = "\n".join(_texts(place)).splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), place.name)


def _caption(place: Path) -> str:
    """The notebook's first paragraph, which states the claim."""
    paragraphs = "\n\n".join(_texts(place)).split("\n\n")
    told = [p for p in paragraphs if p.strip() and not p.startswith(("#", "|"))]
    return f"<p>{_marked(told[0])}</p>" if told else ""


def _marked(text: str) -> str:
    """Escape a text; its **bold**, *emphasis* and `code` become HTML."""
    text = escape(text)
    for mark, tag in ((r"\*\*(.+?)\*\*", "b"), (r"\*(.+?)\*", "i"), (r"`(.+?)`", "code")):
        text = re.sub(mark, rf"<{tag}>\1</{tag}>", text, flags=re.DOTALL)
    return text
