"""Read pictures as they are shown: a folder of them, a single one, or an animated one.

Pillow reads them, and only in the formats named here: some of its formats start other programs.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence, TiffImagePlugin, UnidentifiedImageError

from vala_research import InputError
from vala_research.data.container import check_pixels

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
ANIMATED = ("PNG", "WEBP")  # formats whose further pictures are shown one after the other
FOLDER_FPS = 24.0  # rate of a folder whose pictures carry none (DAVIS: 24)
FASTEST = 1000  # frames per second, of pictures


def exact_rate(fps: int | float | Fraction) -> Fraction:
    """Return the fraction that a rate stands for: 29.97003 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def picture_files(folder: Path) -> list[Path]:
    """List the pictures of a folder in natural order: frame_2 before frame_10."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != "."]
    files = [p for p in files if p.is_file()]
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}): add some.")
    return sorted(files, key=_natural_order)


def _natural_order(path: Path) -> list[int | str]:
    return [int(s) if s.isdecimal() else s.lower() for s in re.split(r"(\d+)", path.name)]


def read_pictures(path: Path) -> Iterator[np.ndarray]:
    """Yield the pictures of a folder or of a file as shown, h w 3 bytes each."""
    for file in picture_files(path) if path.is_dir() else [path]:
        try:
            with _opened(file) as image:
                shown = ImageSequence.Iterator(image) if _moves(image) else [image]
                for picture in [image] if path.is_dir() else shown:
                    yield _on_white(picture)
        except InputError:
            raise
        except UnidentifiedImageError as error:
            yield _on_white(_tiff(file, error))
        except Exception as error:  # Pillow raises many kinds for damaged data
            raise _unreadable(file) from error


def is_animated(path: Path) -> bool:
    """Tell an animated WebP file by its first bytes, without opening it as a picture."""
    if path.suffix.lower() != ".webp":
        return False
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture in one of our formats, not decoded. Raises InputError if it is too large."""
    try:
        with warnings.catch_warnings():  # Pillow's own limit lies above ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels: give a smaller picture.") from error
    with image:
        check_pixels(path, *image.size)
        yield image


def _moves(image) -> bool:
    return image.format in ANIMATED and getattr(image, "is_animated", False)


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path} is not a readable picture: remove or replace it.")


def _on_white(picture: Image.Image) -> np.ndarray:
    """Return a picture with its EXIF orientation applied and its alpha on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(picture).clip(0, 65535)
        picture = Image.fromarray((grey // 257).astype(np.uint8))
    elif picture.mode == "F":
        picture = _of_floats(np.asarray(picture))

    # Only pictures with alpha take the detour over four channels.
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return np.array(picture.convert("RGB"))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.array(Image.alpha_composite(white, picture).convert("RGB"))


def _of_floats(values: np.ndarray) -> Image.Image:
    """Convert floats in [0, 1], or in [0, 255], to a picture."""
    values = np.nan_to_num(values)
    values = values * (255 if values.max() <= 1 else 1)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _tiff(path: Path, refusal: Exception) -> Image.Image:
    """Read a TIFF file with OpenCV: Pillow knows no colours and no doubles as floats."""
    try:
        with path.open("rb") as file:
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
        check_pixels(path, int(directory[256]), int(directory[257]))  # width and height
        import cv2

        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        colours = values if values.ndim == 2 else values[..., 2::-1]  # from blue, green, red
        if np.issubdtype(values.dtype, np.floating):
            return _of_floats(colours)
    except InputError:
        raise
    except Exception:  # it is no TIFF file, or a damaged one
        raise _unreadable(path) from refusal
    raise _unreadable(path) from refusal


def picture_times(path: Path) -> tuple[Fraction, int | list[float]]:
    """Return the rate and the number of a folder's pictures, or the times of an animation.

    The times are seconds; the last one is the end.
    """
    files = picture_files(path) if path.is_dir() else [path]
    try:
        with _opened(files[0]) as first:
            if path.is_dir() or not _moves(first):
                return picture_rate(first.info.get("fps")), len(files)
            times = [0.0]
            for picture in ImageSequence.Iterator(first):
                picture.load()  # a WebP file knows a picture's duration only then
                times.append(times[-1] + (picture.info.get("duration") or 100) / 1000)
            return exact_rate((len(times) - 1) / times[-1]), times
    except InputError:
        raise
    except UnidentifiedImageError as error:
        _tiff(files[0], error)
        return picture_rate(None), len(files)
    except Exception as error:
        raise _unreadable(files[0]) from error


def picture_rate(text: object) -> Fraction:
    """Return the rate that a picture's text entry states, or the default for any other text."""
    try:
        rate = float(text)
    except (TypeError, ValueError):
        return exact_rate(FOLDER_FPS)
    usable = math.isfinite(rate) and 1 / FASTEST <= rate <= FASTEST
    return exact_rate(rate if usable else FOLDER_FPS)
