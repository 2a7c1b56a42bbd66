"""Find clips and their captions in nested values, as JSON and cells of tables hold them."""

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Columns of a csv, and keys of JSON; the first that a row has counts.
CLIP_COLUMNS = (
    "file", "video", "name", "file_name", "filename", "video_file_name", "video_name",
    "video_path", "video_id", "videoid", "videoID", "path",
)  # fmt: skip
CAPTION_COLUMNS = (
    "caption", "text", "prompt", "captions", "texts", "prompts", "sentence", "sentences",
    "description", "descriptions", "enCap",
)  # fmt: skip


def nested_rows(
    table: Any, is_clip: Callable[[str], bool], above: str | None = None
) -> Iterator[tuple[str | int, Any]]:
    """Yield (name of a clip, whatever holds its captions) of a nested table.

    That is an object of clips, a list of rows, or an object of either.
    is_clip: tells whether a key is the name of a clip that exists.
    above: the key under which `table` stands; it names the clip of a row without a name.
    """
    for member in table if isinstance(table, list) else ():
        yield from nested_rows(member, is_clip, above or "")
    if not isinstance(table, dict):
        return

    # A row names its clip, or its key does.
    name = value_of(table, CLIP_COLUMNS) or above
    if name and isinstance(name, str | int) and table.keys() & set(CAPTION_COLUMNS):
        yield name, value_of(table, CAPTION_COLUMNS)
        return

    # An object of clips: one of its keys is a clip, or it is the whole file.
    names_clips = above is None or any(map(is_clip, table))
    for key, value in table.items():
        if is_clip(key) or (names_clips and _is_plain(value)):
            yield key, value
        else:
            yield from nested_rows(value, is_clip, key)


def _is_plain(value: Any) -> bool:
    members = value if isinstance(value, list) else [value]
    return all(isinstance(member, str | int) for member in members)


def value_of(row: dict, keys: Iterable[str]) -> Any:
    """Return what a row holds under the first of these keys that is not empty."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def texts_in(held: Any) -> list[str | int]:
    """List the captions in a text, a list, or an object with captions; also where they are coded.

    A table's cell may hold a list or an object as text. Such a text is never a caption.
    """
    if isinstance(held, str) and held.strip()[:1] in ("[", "{"):
        for parsed in (json.loads, ast.literal_eval):
            try:
                value = parsed(held.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, dict | list):
                return texts_in(value)
    if isinstance(held, dict):
        return texts_in(value_of(held, CAPTION_COLUMNS))
    if isinstance(held, list):
        return [text for member in held for text in texts_in(member)]
    return [] if held is None else [held]


def tidied(texts: Iterable) -> tuple[str, ...]:
    """Remove empty captions, superfluous white space, and whatever is neither text nor number."""
    words = (str(t).encode("utf-8", "replace").decode() for t in texts if isinstance(t, str | int))
    return tuple(" ".join(text.split()) for text in words if text.strip())
