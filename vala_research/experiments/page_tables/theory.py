"""Tables of the theory: verdicts, what flicker costs, and attention to tokens nearly right."""

from __future__ import annotations

import pandas as pd

from vala_research.experiments.contract import part_of
from vala_research.experiments.page_cells import as_markdown, number, rows_of
from vala_research.experiments.theory import attention, steady_flicker

VERDICTS = {  # as the rows name it: as the page does
    "holds": "holds as written",
    "holds with hypothesis":
        "false as written; holds with a hypothesis that the paper's own proof names",
    "false": "false as written; no reading that the paper states saves it",
}  # fmt: skip
PARTED = {"C.4": "C.4 (descent)"}  # other parts of this statement have other verdicts
NOISES = {"shared": "one", "own": "per frame"}
IDEALS = {  # pair and what it is; the tokens at each share of the way
    "words": "the edited prompt's tokens, same queries", "edit": "the edited prompt's own run",
    "frame": "next frame", "step": "20 timesteps before",
}  # fmt: skip


class VerdictTable:
    """The numbered statements by verdict; one that is split in parts has its first part's."""

    def written(self) -> str:
        """The table in Markdown."""
        rows = rows_of("45_theory_overview").dropna(subset="part_of")
        first = rows.drop_duplicates("part_of").set_index("part_of").verdict
        lines = []
        for verdict, words in VERDICTS.items():
            names = [PARTED.get(name, name) for name in first.index[first == verdict]]
            lines.append([words, ", ".join(names)])
        return as_markdown(["verdict", "numbered statements"], lines)


class FlickerTable:
    """The temporal loss of a flickering and of a moving clip, by attention and noise."""

    def written(self) -> str:
        """The table in Markdown."""
        rows = part_of(rows_of("40_theory_temporal_loss"), "setting")
        means = steady_flicker.setting_table(rows)
        means = means.loc[pd.MultiIndex.from_frame(rows[steady_flicker.KEYS]).unique()]
        titles = ["attention", "noise", "t", "1000 L of flicker", "1000 L of the moving clip",
                  "clips in which flicker has less"]  # fmt: skip
        lines = [
            [name, NOISES[noise], f"{t:.0f}", number(1000 * flicker, 2), number(1000 * moving, 2),
             lower]
            for (name, noise, t), (flicker, moving, lower) in zip(
                means.index, means.itertuples(index=False), strict=True)
        ]  # fmt: skip
        return as_markdown(titles, lines)


class LayerTable:
    """How often a network's layers break the paper's bound, and how near they come to ours."""

    def written(self) -> str:
        """The table in Markdown."""
        found = attention.table(rows_of("44_theory_attention"))
        titles = ["ideal", "paper's broken, %", "largest error / (F)", "largest error / (R)"]
        lines = []
        for pair, words in IDEALS.items():
            for share, row in found.loc[pair].iloc[::-1].iterrows():
                near = f", Z* + {share:g} ΔZ" if pair in attention.APPROACHES else ""
                lines.append([words + near, number(100 * row["paper's broken"], 0),
                              number(row["F ratio"], 3), number(row["R ratio"], 3)])  # fmt: skip
        return as_markdown(titles, lines)


TABLES = {"verdicts": VerdictTable()}
THEORY = {"flicker": FlickerTable(), "layers": LayerTable()}  # of theory/README.md
