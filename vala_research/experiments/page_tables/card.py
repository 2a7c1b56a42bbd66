"""Tables of one graphics card: edits, and policies of attention."""

from __future__ import annotations

from vala_research.evaluation.gpu.policies import OF_BOTH, OF_IMAGES
from vala_research.experiments.page_cells import Column, Line, PageTable
from vala_research.experiments.page_tables.columns import lines

TABLES = {
    "graphics card, edits": PageTable(
        "gpu_edits", "clip of 512 pixels", lines("8 frames", "16 frames", "32 frames"),
        [Column("seconds per step, inversion and guided edit", "step"),
         Column("50 + 50 steps, seconds", "seconds", digits=1),
         Column("TFLOP/s", "tflops", digits=0), Column("peak memory, GiB", "peak_gib"),
         Column("`pipe.estimate`, GiB", "estimated_gib")],
    ),
    "graphics card, policies": PageTable(
        "gpu_policies", "network: a frame attends to",
        [Line(f"{network}: {policy}", policy, where={"kind": network})
         for network, policies in (
             ("image model", OF_BOTH | OF_IMAGES), ("video transformer", OF_BOTH))
         for policy in policies],
        [Column("seconds", "seconds", digits=3), Column("over all frames", "time"),
         Column("FLOPs, over all frames", "flops"), Column("TFLOP/s", "tflops", digits=0),
         Column("peak memory, GiB", "peak_gib", digits=1)],
    ),
}  # fmt: skip
