"""The table of edits in the model card: one line per setting and kind of edit."""

from __future__ import annotations

COLUMNS = {
    "setting": "{setting}", "edit": "{kind}", "PSNR": "{psnr:.1f}", "source": "{source_psnr:.1f}",
    "gain [95%]": "{gain:+.1f} [{gain_low:+.1f}, {gain_high:+.1f}]", "edited": "{edited:.2f}",
    "success": "{success:.2f}", "E_warp": "{per_mille:.1f}", "CLIP-F": "{clip_f:.1f}",
    "s": "{seconds:.1f}", "MiB": "{peak_mib:.0f}", "n": "{n}",
}  # fmt: skip
PLACED = {"present": "{presence:.2f}", "path": "{path_error:.1f}", "size": "{size_error:.2f}",
          "jitter": "{jitter:.1f}"}  # fmt: skip
WORDS = """ Where the object is: `present`, share of
frames in which it is found; `path` and `jitter`, distance to its true path and second difference of
the deviation, RMS in pixels; `size`, RMS relative error of its extent."""


def is_placed(edits: list[dict]) -> bool:
    """Whether it was measured where the object is."""
    return "presence" in edits[0]


def placement_words(edits: list[dict]) -> str:
    """What the card says of the columns of the placement, if there are any."""
    return WORDS if is_placed(edits) else ""


def edit_table(edits: list[dict]) -> str:
    """The lines of `card.summary` in Markdown; where the object is, if that was measured."""
    columns = COLUMNS | (PLACED if is_placed(edits) else {})
    lines = [[f.format(**e, per_mille=1e3 * e["warp_error"]) for f in columns.values()]
             for e in edits]  # fmt: skip
    table = "\n".join(f"| {' | '.join(line)} |" for line in [columns, *lines])
    return table.replace("\n", "\n" + "|---" * len(columns) + "|\n", 1)
