"""Tables of GE-Adapter and of hosts: their costs, and what the adapter and the filter bring."""

from __future__ import annotations

from vala_research.editing.hosts import HOSTS
from vala_research.experiments.host_costs import OWN
from vala_research.experiments.page_cells import Column, Line, PageTable, Plain, PlainTable
from vala_research.experiments.page_tables.columns import PATH, PSNR, gain


def beside(names: dict[str, str]) -> list[Line]:
    """A line per host: with on without; and one for all of them."""
    each = [Line(label, f"{name}, with", f"{name}, without") for name, label in names.items()]
    with_, without = (tuple(f"{name}, {way}" for name in names) for way in ("with", "without"))
    return [*each, Line("**mean**", with_, without)]


EDITORS = {
    "text2video_zero": "Text2Video-Zero", "token_flow": "TokenFlow",
    "vid2vid_zero": "vid2vid-zero", "vid_to_me": "VidToMe",
}  # fmt: skip
PAIRED = (
    Column("PSNR, dB: without", "psnr", "baseline"), gain("gain", "psnr"),
    Column("attributes right, %: without", "success", "baseline", 1), gain("gain", "success", 1),
)  # fmt: skip

TABLES = {
    "host costs": PlainTable(
        "host_costs", "host", {f"`{name}`": f"setting == '{name}'" for name in (OWN, *HOSTS)},
        [Plain("FLOPs over those of `own`, 16 frames", "flops", where="frames == 16"),
         Plain("32 frames", "flops", where="frames == 32"),
         Plain("peak memory, GB, 16 frames", "bytes / 1e9", 1, "frames == 16"),
         Plain("32 frames", "bytes / 1e9", 1, "frames == 32")],
    ),
    "adapter gains": PageTable(
        "35_ge_adapter_gains", "host (attention)",
        beside({name: f"`{name}`" for name in ("own", "sparse_causal", "anchors")}),
        [gain("PSNR to the true edit, dB", "psnr"),
         gain("E_warp x 1000 along the true edit's flow, reduced by", "warp_error_truth"),
         gain("along the source's flow", "warp_error"),
         gain("path error, reduced by", "path_error"), gain("jitter, reduced by", "jitter")],
    ),
    "hosts": PageTable(
        "36_ge_hosts", "editor", beside(EDITORS),
        [*PAIRED, gain("path error lower by", "path_error"), gain("jitter lower by", "jitter"),
         gain("E_warp x 1000 lower by", "warp_error")],
    ),
    "bilateral hosts": PageTable(
        "37_ge_bilateral_hosts", "editor", beside(EDITORS),
        [gain("reconstruction, dB", "inversion_psnr", 1), gain("PSNR to the true edit, dB", "psnr"),
         gain("attributes right, %", "success", 1), gain("E_warp x 1000 lower by", "warp_error")],
    ),
    "controls": PageTable(
        "38_ge_controls", "",
        [Line("no ControlNet", "none, without"), Line("depth", "depth, without", "none, without"),
         Line("depth, with the adapter", "depth, with", "depth, without")],
        [PATH, gain("lower by", "path_error"), Column("size error, %", "size_error", digits=1),
         gain("lower by", "size_error", 1), Column("right shape, %", "shape", digits=1),
         gain("gain", "shape", 1), PSNR, gain("gain", "psnr")],
    ),
}  # fmt: skip
