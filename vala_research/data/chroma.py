"""Bring halved chroma (4:2:0) of high dynamic range to full size, guided by luma.

Between chroma samples, ffmpeg interpolates or repeats. At the edge of two colours, either makes
light that is several times too bright or too dark, since the codes of PQ and HLG are steep. Here a
pixel takes the samples whose luma is like its own (joint bilateral upsampling, Kopf et al., 2007).
"""

import numpy as np

FULL = 2  # a colour range (ITU-T H.273)
ALIKE = 0.0025  # difference of luma at which the weight of a sample is a quarter
BLUE, GREEN, RED = 0.0593, 0.6780, 0.2627  # luma of BT.2020


def is_halved(frame) -> bool:
    """Tell whether a frame has half as many chroma samples as pixels in either direction."""
    w, h = frame.width, frame.height
    kind = frame.format
    halves = (kind.chroma_width(w), kind.chroma_height(h)) == (-(-w // 2), -(-h // 2))
    return halves and not kind.is_rgb and len(kind.components) == 3


def rgb_codes(frame, is_small: bool = False) -> np.ndarray:
    """Convert a frame of BT.2020 with halved chroma to 16-bit RGB codes, h w 3.

    is_small: one pixel per chroma sample, so that none is guessed.
    """
    planes = frame.reformat(format="yuv420p16le").planes
    codes = [np.frombuffer(p, np.uint16).reshape(p.height, -1)[:, : p.width] for p in planes]
    bits = frame.format.components[0].bits
    full = 256 - 2.0 ** (8 - bits)  # the largest code, in steps of 8 bits
    low, spans = (0, (full, full)) if frame.color_range == FULL else (16, (219, 224))
    luma = (codes[0] / np.float32(256) - low) / spans[0]
    blue, red = ((c / np.float32(256) - 128) / spans[1] for c in codes[1:])
    if is_small:
        luma = _means(luma, blue.shape)
    else:
        blue, red = upsampled(luma, blue, red)

    # The inverse of the matrix of BT.2020 for non-constant luminance.
    r, b = luma + 2 * (1 - RED) * red, luma + 2 * (1 - BLUE) * blue
    g = (luma - RED * r - BLUE * b) / GREEN
    return (np.stack([r, g, b], -1).clip(0, 1) * 65535).round().astype(np.uint16)


def upsampled(luma: np.ndarray, *chroma: np.ndarray) -> np.ndarray:
    """Return chroma planes in the size of luma, c h w.

    Each pixel averages the four nearest samples, by distance (bilinear) and likeness of luma.
    """
    h, w = luma.shape
    rows, columns = chroma[0].shape
    guide = _means(luma, (rows, columns))
    padded = [np.pad(plane, 1, mode="edge") for plane in (guide, *chroma)]
    luma = _even(luma, (rows, columns))

    # The pixels of one parity have their samples at the same places.
    full = np.empty((len(chroma), *luma.shape), np.float32)
    for y, x in np.ndindex(2, 2):
        pixels, total = luma[y::2, x::2], 0
        sums = full[:, y::2, x::2]
        sums[:] = 0
        for row, near_y in ((1, 0.75), (2 * y, 0.25)):
            for column, near_x in ((1, 0.75), (2 * x, 0.25)):
                place = slice(row, row + rows), slice(column, column + columns)
                alike, *samples = (plane[place] for plane in padded)
                weight = near_y * near_x / (1 + ((pixels - alike) / ALIKE) ** 2) ** 2
                total = total + weight
                for k, sample in enumerate(samples):
                    sums[k] += weight * sample
        sums /= total
    return full[:, :h, :w]


def _even(luma: np.ndarray, samples: tuple[int, int]) -> np.ndarray:
    """Pad an odd side, so that each chroma sample has four pixels."""
    missing = [(0, 2 * n - side) for n, side in zip(samples, luma.shape, strict=True)]
    return np.pad(luma, missing, mode="edge")


def _means(luma: np.ndarray, samples: tuple[int, int]) -> np.ndarray:
    """Return the luma of each chroma sample, the mean of its four pixels."""
    rows, columns = samples
    return _even(luma, samples).reshape(rows, 2, columns, 2).mean((1, 3))
