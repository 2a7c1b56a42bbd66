"""Show high dynamic range (PQ and HLG, ITU-R BT.2100) and wide gamuts as standard ones.

Light is in nits, cd/m^2. A picture that standard dynamic range can show stays as it is: white at
100 nits (BT.1886) or at 203 nits (BT.2408). Only light above white is compressed.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics, ITU-T H.273
HLG_PEAK = 1000.0  # nominal peak of an HLG display, in nits
WHITES = (100.0, 203.0)  # nits
GAMMA = 2.35  # of a display of standard range: near BT.1886 (2.4), and not far from sRGB
KNEE = 0.5  # part of white below which light is never changed
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
BT2020, DISPLAY_P3 = 9, 12  # primaries, ITU-T H.273
TO_709 = {  # linear, to BT.709 (for BT.2020: BT.2087)
    BT2020: np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
        np.float32,
    ),
    DISPLAY_P3: np.array(
        [[1.2249, -0.2249, 0.0], [-0.0421, 1.0421, 0.0], [-0.0196, -0.0786, 1.0983]], np.float32
    ),
}


@dataclass(frozen=True)
class Brightness:
    """Brightness of a clip: its brightest light, and the light of its white, in nits."""

    peak: float
    white: float

    @classmethod
    def of(cls, grey: float, peak: float) -> "Brightness":
        """Guess the white: the lower one for a clip that does not exceed it.

        grey, peak: see `peaks_of`. Greys may exceed white by 5%, other colours by 10%: at their
        edges, halved chroma makes light that the picture did not have.
        """
        is_low = grey <= 1.05 * WHITES[0] and peak <= 1.1 * WHITES[0]
        white = WHITES[0] if is_low else WHITES[1]
        return cls(peak if grey > 1.05 * white else white, white)


@cache
def _curve(transfer: int) -> np.ndarray:
    """Tabulate the light of each 16-bit code: nits for PQ, light of the scene in [0, 1] for HLG."""
    code = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = code ** (1 / m2)
        return (1e4 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = (np.exp((code - c) / a) + b) / 12
    return np.where(code <= 0.5, code**2 / 3, bright).astype(np.float32)


def light(codes: np.ndarray, transfer: int) -> np.ndarray:
    """Convert 16-bit BT.2020 codes, h w 3, to the light of a display in nits, BT.2020."""
    linear = _curve(transfer)[codes]
    if transfer == PQ:
        return linear
    return HLG_PEAK * linear * (linear @ LUMA_2020)[..., None] ** 0.2


def peaks_of(codes: np.ndarray, transfer: int) -> tuple[float, float]:
    """Return the brightest light of a picture in nits, without its few brightest pixels.

    That of its luma, as if all were grey, and that of its channels.
    """
    luma = np.repeat((codes @ LUMA_2020).round().astype(np.uint16)[..., None], 3, -1)
    lights = (light(c, transfer).max(-1) for c in (luma, codes))
    grey, peak = (float(np.percentile(nits, 99.5)) for nits in lights)
    return grey, peak


def tone_mapped(codes: np.ndarray, transfer: int, brightness: Brightness) -> np.ndarray:
    """Convert 16-bit BT.2020 codes, h w 3, to bytes of standard dynamic range, BT.709."""
    linear = (light(codes, transfer) / brightness.white) @ TO_709[BT2020].T

    # Compress light above the knee by an extended Reinhard curve, which keeps the colour.
    headroom = (brightness.peak / brightness.white - KNEE) / (1 - KNEE)
    if brightness.peak > brightness.white:
        brightest = linear.max(-1, keepdims=True)
        excess = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
        mapped = KNEE + (1 - KNEE) * excess * (1 + excess / headroom**2) / (1 + excess)
        linear = np.where(brightest > KNEE, linear * mapped / np.maximum(brightest, KNEE), linear)

    return (linear.clip(0, 1) ** np.float32(1 / GAMMA) * 255).round().astype(np.uint8)


def narrowed(picture: np.ndarray, primaries: int) -> np.ndarray:
    """Convert bytes of standard range, h w 3, from the primaries of a wide gamut to BT.709."""
    linear = (np.arange(256, dtype=np.float32) / 255)[picture] ** np.float32(GAMMA)
    linear = (linear @ TO_709[primaries].T).clip(0, 1)
    return (linear ** np.float32(1 / GAMMA) * 255).round().astype(np.uint8)
