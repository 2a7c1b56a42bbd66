"""Tables of flow models: edits without inversion, anchors, fusion across paths."""

from __future__ import annotations

from vala_research.experiments.page_cells import Line, PageTable
from vala_research.experiments.page_tables.columns import STEADINESS, WAYS, lines

TABLES = {
    "flow editing": PageTable("50_flow_editing", "base, way", lines(
        "image, inversion", "image, FlowEdit", "image, FlowAlign", "image, anchors, inversion",
        "image, anchors, FlowEdit", "motion, inversion", "motion, FlowEdit", "motion, FlowAlign",
    ), WAYS),
    "flow anchors": PageTable(
        "51_flow_anchors", "a frame attends to",
        [Line("all frames (native)", "all frames"), *lines(
            "own", "own and 2 key frames", ("own and 1 anchor", "own and 1 site anchor"),
            ("own and 2 anchors", "own and 2 site anchors"),
            ("own and 4 anchors", "own and 4 site anchors"), baseline="all frames",
        )],
        STEADINESS,
    ),
    "flow fusion": PageTable("52_flow_fusion", "denoised by", lines(
        "image", "motion", "flow", "image + motion", "image + flow, path of diffusion",
        "flow + image, path of flow",
    ), WAYS),
    "flow editing, wan": PageTable("50_flow_editing_wan", "base, way", lines(
        "wan, inversion", "wan, FlowEdit", "wan, FlowAlign", "wan, anchors, inversion",
        "wan, anchors, FlowEdit",
    ), WAYS),
}  # fmt: skip
