"""Columns and lines that the tables of several parts share."""

from __future__ import annotations

from vala_research.experiments.page_cells import Column, Line

PSNR = Column("PSNR, dB", "psnr")
RIGHT = Column("attributes right, %", "success", digits=1)
PATH, JITTER = Column("path error", "path_error"), Column("jitter", "jitter")
WARP = Column("E_warp x 1000", "warp_error")


def gain(title: str, metric: str, digits: int = 2, with_p: bool = False) -> Column:
    """A column of gains; with_p: every p-value, and not only those below .05."""
    return Column(title, metric, "gain and p" if with_p else "gain", digits)


def lines(*settings: str | tuple[str, str], baseline: str = "") -> list[Line]:
    """A line per setting, on one baseline; a pair: the setting, and its label on the page."""
    pairs = [(s, s) if isinstance(s, str) else s for s in settings]
    return [Line(label, setting, baseline) for setting, label in pairs]


STEADINESS = (
    JITTER, gain("reduced by", "jitter"), WARP, gain("reduced by", "warp_error"), PSNR,
    gain("gain", "psnr"), RIGHT,
)  # fmt: skip
WAYS = (
    Column("PSNR to the true edit, dB", "psnr"), RIGHT, PATH, JITTER,
    Column("E_warp x 1000", "warp_error", digits=1),
    Column("background, dB", "background", digits=1),
)  # fmt: skip
