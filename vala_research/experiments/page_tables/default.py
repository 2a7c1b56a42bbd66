"""Tables of the default edit and of the search for it."""

from __future__ import annotations

from vala_research.experiments.page_cells import Column, Line, PageTable
from vala_research.experiments.page_tables.columns import JITTER, PATH, PSNR, gain, lines

DEFAULT, FORMER = "default", "image model alone"
KINDS = ("shape", "colour", "background", "pattern", "several")
DEFAULT_EDIT = PageTable(
    "01_default_edit", "kind",
    [Line(kind, DEFAULT, where={"kind": kind}) for kind in KINDS],
    [
        Column("object there, %", "presence", digits=1),
        Column("all right, %", "success", digits=1), PATH, JITTER,
        Column("size error, %", "size_error", digits=1),
        Column("PSNR, dB", "psnr", digits=1),
        Column("image model alone: all right, %", "success", digits=1, setting=FORMER),
        Column("path error", "path_error", setting=FORMER),
        Column("jitter", "jitter", setting=FORMER),
        Column("PSNR, dB", "psnr", digits=1, setting=FORMER),
    ],
)  # fmt: skip

SEARCHED = lines(
    "no motion modules", "no adapter", "no ControlNet", ("no parts", "none of the three"),
    ("image model alone, anchors", "former default: none, 50 steps, anchors"),
    ("fusion, .7 video", "fused: .7 motion UNet, .3 image UNet"),
    ("ControlNet x 1", "ControlNet x 1 (start 1.5)"), "ControlNet x 2",
    ("steps 5", "5 steps (start 15)"), ("steps 10", "10 steps"), ("steps 25", "25 steps"),
    ("steps 50", "50 steps"), ("guidance 1", "guidance 1 (start 2)"), "guidance 1.5",
    "guidance 3", "guidance 7.5", ("guided in steps 0 to 0.5", "guided in the first half"),
    ("guided in steps 0.5 to 1", "guided in the second half"), "exact inversion", "strength 0.6",
    "source prompt as negative prompt",
    ("features injected, .3", "features injected for 30% of the steps"),
    ("self-attention injected, .6", "self-attention alone injected for 60%"),
    ("one residual injected, .6", "one residual alone injected for 60%"),
    ("prompt-to-prompt, .3", "prompt-to-prompt for 30% of the steps"),
    ("prompt-to-prompt, .6", "prompt-to-prompt for 60% of the steps"),
    ("attention anchors", "attention `anchors`"), ("attention extended", "attention `extended`"),
    ("attention sparse_causal", "attention `sparse_causal`"),
    *((f"tuned on the clip, {n} steps",
       f"in place of the adapter, one tuned on the clip for {n} steps") for n in (50, 200)),
    baseline="start",
)  # fmt: skip
LONGER = lines(
    "no motion modules", "no adapter", "no ControlNet", ("ControlNet x 1", "ControlNet x 1"),
    ("steps 10", "10 steps"), ("steps 25", "25 steps"), "guidance 1.5", baseline="start",
)  # fmt: skip
COMBINED = lines(
    "guidance 1.5", "guidance 1.5, 10 steps", "guidance 1.5, ControlNet x 1.25",
    "guidance 1.5, ControlNet x 1", "guidance 1.5, ControlNet x 1.25, 10 steps",
    "guidance 1.25, ControlNet x 1.25, 10 steps", "guidance 1.5, ControlNet x 1.25, 8 steps",
    "guidance 1.5, ControlNet x 1.25, 10 steps, fused", baseline="start",
)  # fmt: skip
SEARCH = (
    Column("evaluations", "evaluations", digits=0), Column("all right, %", "success", digits=1),
    PATH, JITTER, PSNR, gain("gain on the start, dB", "psnr"),
)  # fmt: skip

TABLES = {
    "default edit": DEFAULT_EDIT,
    "default search": PageTable(
        "02_default_search", "setting",
        [Line("**start**: the default", "start"), *SEARCHED], SEARCH,
    ),
    "default search, 16 frames": PageTable(
        "02_default_search_16_frames", "setting",
        [Line("**start**: the default", "start"), *LONGER], SEARCH,
    ),
    "default combinations": PageTable(
        "02_default_search_combinations", "setting", [Line("start", "start"), *COMBINED], SEARCH,
    ),
}  # fmt: skip
