"""`vala shards`: write a data set as shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research.cli.options import Layout, Split, Strict, sides


def shards(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Read this folder of clips and captions.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write into this folder, new or begun before.")
    ],
    layout: Layout = None,
    split: Split = None,
    size: Annotated[
        str | None,
        typer.Option(help="Scale frames to SIDE or HEIGHTxWIDTH.", show_default="the clips'"),
    ] = None,
    picture: Annotated[
        str, typer.Option(help="Store frames as png (exact) or jpg (about a third as large).")
    ] = "png",
    piece: Annotated[int, typer.Option(help="Put at most this many frames into a sample.")] = 32,
    pieces_per_clip: Annotated[
        int | None, typer.Option(help="Take at most this many per clip.", show_default="all")
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(help="Put this many clips into a tar file.")] = 64,
    strict: Strict = False,
) -> None:
    """Write a data set as WebDataset shards; the same command goes on where it was stopped."""
    picture_sides = sides(size)  # before anything heavy is imported
    from vala_research.data.shards import ShardSettings, convert

    settings = ShardSettings(picture_sides, picture, piece, pieces_per_clip, clips_per_shard)
    summary = convert(data, output, settings, layout, split, strict)
    n_shards = len(list(output.glob("shard-*.tar")))
    typer.echo(f"{summary}\nwrote {n_shards} shard{'s' * (n_shards != 1)} to {output}")
