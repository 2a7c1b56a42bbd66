"""`vala shards`: write a data set as shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research.cli.options import Layout, Split, Strict, option, sides

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="Read this folder of clips and captions.")
]
Output = option(Path, "Write into this folder, new or begun before.", "-o", "--output")
Sides = option(str | None, "Scale frames to SIDE or HEIGHTxWIDTH pixels.", default="the clips'")
Picture = option(str, "Store frames as png (exact) or jpg (about a third as large).")
Piece = option(int, "Put at most this many frames into a sample.")
PiecesPerClip = option(int | None, "Take at most this many samples per clip.", default="all")
ClipsPerShard = option(int, "Put this many clips into a tar file.")


def shards(
    data: Data,
    output: Output,
    layout: Layout = None,
    split: Split = None,
    size: Sides = None,
    picture: Picture = "png",
    piece: Piece = 32,
    pieces_per_clip: PiecesPerClip = None,
    clips_per_shard: ClipsPerShard = 64,
    strict: Strict = False,
) -> None:
    """Write a data set as WebDataset shards; the same command goes on where it was stopped."""
    picture_sides = sides(size)  # before anything heavy is imported
    from vala_research.data.shards import ShardSettings, convert

    settings = ShardSettings(picture_sides, picture, piece, pieces_per_clip, clips_per_shard)
    summary = convert(data, output, settings, layout, split, strict)
    n_shards = len(list(output.glob("shard-*.tar")))
    typer.echo(f"{summary}\nwrote {n_shards} shard{'s' * (n_shards != 1)} to {output}")
