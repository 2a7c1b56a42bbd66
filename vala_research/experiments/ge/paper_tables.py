"""GE-Adapter's own tables (arXiv 2501.04606) and the conflicts between them.

The paper scores MSR-VTT with networks and hosts of other code. Its numbers are printed beside ours;
they cannot be compared with ours.
"""

from collections.abc import Mapping

import pandas as pd

Numbers = tuple[float | None, ...]

HOSTS = ("own", "first", "sparse_causal", "extended", "anchors")  # attention policies of editors
# The host here that is nearest to a method of the paper. The other methods have none.
NEAREST = {"Text2Video": "first", "Text2Video-Zero": "first", "Vid2Vid": "extended"}
# The editors here (editing/hosts.py) by the paper's names.
EDITORS = {
    "Text2Video": "text2video_zero", "Text2Video-Zero": "text2video_zero",
    "TokenFlow": "token_flow", "Vid2Vid": "vid2vid_zero", "VidToMe": "vid_to_me",
}  # fmt: skip
ADAPTER = "LPIPS", "CLIP", "FID"  # Table 1: method -> without and with the adapter
TABLE_1 = {
    "Text2Video-Zero": ((0.402, 28.82, None), (0.319, 31.38, None)),
    "TokenFlow": ((0.135, 28.90, 166.72), (0.129, 29.15, 143.21)),
    "Vid2Vid": ((0.303, 31.94, 149.40), (0.253, 32.78, 154.30)),
    "VidToMe": ((0.123, 29.93, 146.27), (0.122, 29.94, 143.33)),
}
FILTER = "FID", "CLIP", "LPIPS"  # Table 2: method -> bilateral inversion off and on
TABLE_2 = {
    "TokenFlow": ((135.66, 29.17, 0.142), (122.52, 29.35, 0.136)),
    "Vid2Vid": ((387.76, 20.08, 0.210), (320.80, 25.84, 0.166)),
    "VidToMe": ((357.25, 25.00, 0.126), (143.72, 28.12, 0.114)),
    "Text2Video": ((None, 29.10, 0.347), (None, 30.07, 0.244)),
}
CONTROL = "FID", "CLIP", "LPIPS"  # Table 3: condition -> without and with the adapter
TABLE_3 = {
    "Canny Edge": ((343.21, 29.15, 0.729), (338.78, 31.44, 0.725)),
    "Human Pose": ((365.91, 29.49, 0.763), (362.83, 33.56, 0.746)),
    "Depth Map": ((343.33, 29.89, 0.721), (339.10, 31.67, 0.718)),
}
CONDITIONS = {"Canny Edge": "canny", "Human Pose": "pose", "Depth Map": "depth"}
CONFLICTS = """Where the paper's tables conflict, both without adapter and filter:
TokenFlow  FID 166.72, CLIP 28.90 in Table 1; 135.66, 29.17 in Table 2.
Vid2Vid    FID 149.40, CLIP 31.94 in Table 1; 387.76, 20.08 in Table 2.
VidToMe    FID 146.27, CLIP 29.93 in Table 1; 357.25, 25.00 in Table 2.
The text on Table 1 quotes VidToMe from Table 2 (CLIP 25.00 to 28.12, LPIPS 0.126 to 0.114).
With the adapter Vid2Vid's FID worsens (149.40 to 154.30, Table 1)."""


def adapter_table(hosts: Mapping[str, str] = NEAREST) -> pd.DataFrame:
    """Table 1: one row per method and side, with the host here; hosts: `NEAREST` or `EDITORS`."""
    return _table(TABLE_1, ADAPTER, "adapter", ("without", "with"), hosts)


def filter_table(hosts: Mapping[str, str] = NEAREST) -> pd.DataFrame:
    """Table 2: one row per method and side, with the host here; hosts: `NEAREST` or `EDITORS`."""
    return _table(TABLE_2, FILTER, "filter", ("off", "on"), hosts)


def control_table() -> pd.DataFrame:
    """Table 3: one row per condition and side, with the condition's name here."""
    return _table(TABLE_3, CONTROL, "adapter", ("without", "with"), CONDITIONS)


def _table(
    methods: dict[str, tuple[Numbers, Numbers]], columns: tuple[str, ...], what: str,
    sides: tuple[str, str], hosts: Mapping[str, str],
) -> pd.DataFrame:  # fmt: skip
    return pd.DataFrame([
        {"host of the paper": method, "nearest here": hosts.get(method, "none"), what: side}
        | dict(zip(columns, numbers, strict=True))
        for method, both in methods.items()
        for side, numbers in zip(sides, both, strict=True)
    ])  # fmt: skip
