"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError

DTYPES = ("float32", "float16", "bfloat16")


ClipPath = Annotated[Path, typer.Argument(metavar="CLIP", help="Video, gif or folder of frames.")]
SourcePrompt = Annotated[str, typer.Option(help="What the clip shows.")]
Model = Annotated[str, typer.Option(help="'miniature', a local folder or a hub id.")]
Attention = Annotated[str, typer.Option(help="own, first, sparse_causal, extended or anchors.")]
Inversion = Annotated[str, typer.Option(help="ddim, exact, bilateral or null_text.")]
Injection = Annotated[float, typer.Option(help="First share of the steps fed by the source.")]
Steps = Annotated[int, typer.Option(help="Diffusion steps each way.")]
Guidance = Annotated[float, typer.Option(help="How strongly the prompt acts; 1 is as it is.")]
Frames = Annotated[int | None, typer.Option(help="Use so many frames.", show_default="all")]
Stride = Annotated[int, typer.Option(help="Use every n-th frame.")]
Size = Annotated[str | None, typer.Option(help="SIDE or HEIGHTxWIDTH.", show_default="the model's")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help=f"Of the networks: {', '.join(DTYPES)}.")]
Seed = Annotated[int, typer.Option(help="Of whatever is drawn at random.")]
Adapter = Annotated[
    str | None, typer.Option(help="Folder of vala train, 'miniature'.", show_default="none")
]
AdapterInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Of T, where it acts: from and to.", show_default="its own"),
]
AdapterScale = Annotated[
    float | None, typer.Option(help="How strongly it acts.", show_default="its own")
]


def sides(size: str | None) -> int | tuple[int, int] | None:
    """What --size says: SIDE or HEIGHTxWIDTH, in pixels."""
    if size is None:
        return None
    given = size.lower().split("x")
    if not (len(given) <= 2 and all(s.isdecimal() and int(s) for s in given)):
        raise InputError(f"--size is {size!r}: give SIDE or HEIGHTxWIDTH in pixels, as in 512x320.")
    return int(given[0]) if len(given) == 1 else (int(given[0]), int(given[1]))
