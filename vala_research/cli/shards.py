"""`vala shards`: a data set becomes shards; what is told beside is the library's own summary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research.cli.options import sides


def shards(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of clips and captions.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder: new, or begun before.")],
    layout: Annotated[
        str | None,
        typer.Option(help="msrvtt, loveu, davis or folder.", show_default="by its files"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="As its caption files name it.", show_default="all")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="SIDE or HEIGHTxWIDTH.", show_default="the clips'")
    ] = None,
    picture: Annotated[str, typer.Option(help="png is exact, jpg about a third as large.")] = "png",
    piece: Annotated[int, typer.Option(help="Longest run of frames in one sample.")] = 32,
    pieces_per_clip: Annotated[
        int | None, typer.Option(help="At most so many of a clip.", show_default="all")
    ] = None,
    clips_per_shard: Annotated[int, typer.Option(help="Clips in a tar file.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on a clip that is missing or damaged.")
    ] = False,
) -> None:
    """Write a data set as WebDataset shards; given again, it goes on where it was stopped."""
    picture_sides = sides(size)  # before anything heavy is imported
    from vala_research.data.shards import ShardSettings, convert

    settings = ShardSettings(picture_sides, picture, piece, pieces_per_clip, clips_per_shard)
    said = convert(data, output, settings, layout, split, strict)
    n_shards = len(list(output.glob("shard-*.tar")))
    typer.echo(f"{said}\nwrote {n_shards} shard{'s' * (n_shards != 1)} to {output}")
