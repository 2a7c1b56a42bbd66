"""Tables of FLDM: fusions, their gains by length, and their costs."""

from __future__ import annotations

from vala_research.experiments.fldm.settings import FUSED, IMAGE, VIDEO
from vala_research.experiments.page_cells import Column, Line, PageTable, Plain, PlainTable
from vala_research.experiments.page_tables.columns import JITTER, PATH, RIGHT, WARP, gain, lines

FUSED_EDITS = lines(
    "image only", "video only", "image only, anchors", "fused",
    ("fused, half and half", "**fused, half and half**"), "fused, image from noise",
    "fused, anchors",
)  # fmt: skip
FUSIONS = [
    Line("video model against image model", "video only", "image only"),
    Line("fused against image model", "fused", "image only"),
    Line("fused against video model", "fused", "video only"),
    Line("half and half against image model", "fused, half and half", "image only"),
    Line("half and half against video model", "fused, half and half", "video only"),
]

COSTS = [
    Plain(f"{words}: {name}", value, digits, f"setting == '{setting}'")
    for words, value, digits in (("TFLOP", "tflop", 0), ("peak memory, GiB", "peak / 1024", 2))
    for name, setting in (("image model", IMAGE), ("video model", VIDEO), ("fused", FUSED))
]

TABLES = {
    "fused costs": PlainTable(
        "26_fldm_cost", "frames",
        {f"{n}": f"part == 'counted' and frames == {n}" for n in (8, 16, 32, 64)}, COSTS,
    ),
    "fusion": PageTable(
        "20_fldm_fusion", "setting", FUSED_EDITS,
        [JITTER, PATH, WARP, RIGHT, Column("PSNR to the true edit, dB", "psnr"),
         Column("CLIP-T", "clip_t"), Column("CLIP-F", "clip_f")],
    ),
    "fusion gains": PageTable(
        "20_fldm_fusion", "comparison", FUSIONS,
        [gain("jitter lower by, pixels", "jitter", with_p=True),
         gain("E_warp x 1000 lower by", "warp_error", with_p=True),
         gain("path error lower by, pixels", "path_error", with_p=True),
         gain("PSNR, dB", "psnr", with_p=True)],
    ),
    "long clips": PageTable(
        "24_fldm_long_clips", "frames",
        [Line(f"{n}", "fused", "image only", {"frames": n}) for n in (8, 16, 24, 48)],
        [Column("PSNR, dB: image model", "psnr", "baseline"), Column("fused", "psnr"),
         gain("gain", "psnr"),
         Column("jitter: image model", "jitter", "baseline"), JITTER,
         gain("lower by", "jitter"),
         Column("E_warp x 1000: image model", "warp_error", "baseline"), WARP,
         gain("lower by", "warp_error")],
    ),
}  # fmt: skip
