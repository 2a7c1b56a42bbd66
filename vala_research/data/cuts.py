"""Tell a file whose bytes end too early. Only bytes that are missing count, no header's promise."""

from pathlib import Path

from PIL import Image

SEGMENT, CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")
BLOCKS = {CLUSTER, b"\xa3", b"\xa0"}  # elements of a Matroska file that hold pictures
GIF_CONTROL = b"\x21\xf9\x04"  # stands before a picture of an animation


def is_cut(path: Path, container, stream, n_packets: int, end: float) -> bool:
    """Tell whether pictures are missing because the file ends too early.

    n_packets: number of packets of the stream that were read.
    end: presentation time of the end of the last packet of all streams, in seconds.
    """
    name, size = container.format.name, path.stat().st_size
    with path.open("rb") as file:
        if name.startswith("mov"):
            stored = (e.pos + e.size for e in stream.index_entries if not e.is_discard)
            return max(stored, default=0) > size or _ends_in_fragment(file, size)
        if name.startswith("matroska"):
            return _matroska_ends_early(file, size, (container.duration or 0) / 1e6 - end)
        if name == "ogg":
            return _ends_in_page(file, size)
        if name == "avi":
            riff = int.from_bytes(file.read(8)[4:], "little") + 8
            return riff > size and n_packets < stream.frames
        return name == "gif" and _gif_is_broken(file.read())


def _ends_in_fragment(file, size: int) -> bool:
    """Walk the boxes of an mp4 file; a fragment's header may end after the file."""
    at, kind = 0, b""
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file
            return False
        at += length
    return kind == b"moof" and at > size


def _matroska_ends_early(file, size: int, missing: float) -> bool:
    """Walk the elements of a Matroska file; `missing`: seconds that its duration lacks."""
    at, promised = 0, 0
    while at + 2 <= size:
        # An element is an id, a length and its content; the first bits say how long both are.
        file.seek(at)
        head = file.read(12)
        n_id = 9 - head[0].bit_length()
        n_length = 9 - head[n_id].bit_length() if n_id < len(head) else 9
        if n_id > 4 or n_length > 8 or n_id + n_length > len(head):
            break
        mask = (1 << 7 * n_length) - 1
        length = int.from_bytes(head[n_id : n_id + n_length], "big") & mask

        # Go into the segment, and into a cluster whose length is unknown.
        name, at = head[:n_id], at + n_id + n_length
        if name == SEGMENT:
            promised = 0 if length == mask else at + length
        elif length == mask:
            if name != CLUSTER:
                return False
        elif (at := at + length) > size:
            return name in BLOCKS
    return promised > size and missing > 0.05  # it ends between two elements


def _ends_in_page(file, size: int) -> bool:
    """Compare the last page of an Ogg file, at most 65307 bytes, with the end of the file."""
    start = max(0, size - 65536)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    table = tail[page + 27 : page + 27 + tail[page + 26]] if 0 <= page < len(tail) - 27 else b""
    return bool(table) and page + 27 + len(table) + sum(table) > len(tail)


def _gif_is_broken(data: bytes) -> bool:
    """Walk the blocks of a gif. Only pictures that cannot be reached are damage, no odd ends."""

    def table(at: int) -> int:
        """Size of the colour table that the flags at this place announce."""
        return 3 * 2 << (data[at] & 7) if at < len(data) and data[at] & 0x80 else 0

    at, announced = 13 + table(10), False
    while at < len(data):
        # Skip the head of a block: a trailer, an extension, a picture, or a byte too many.
        kind = data[at]
        if kind == 0x3B:
            return False
        if kind == 0:
            at += 1
            continue
        if kind not in (0x21, 0x2C):
            return GIF_CONTROL in data[at:]
        announced = kind == 0x21 and (announced or data[at + 1 : at + 2] == b"\xf9")
        at += 2 if kind == 0x21 else 11 + table(at + 9)
        if kind == 0x2C and at > len(data):
            return True

        # Skip its parts, each of which begins with its length.
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return announced


def intact_gif_pictures(path: Path) -> tuple[int, bool]:
    """Return the number of a gif's intact pictures, and whether a damaged one follows them."""
    number = 0
    try:
        with Image.open(path, formats=("GIF",)) as gif:
            while True:
                gif.seek(number)
                gif.load()
                number += 1
    except EOFError:
        return number, False
    except Exception:  # Pillow raises many kinds for damaged data
        return number, True
