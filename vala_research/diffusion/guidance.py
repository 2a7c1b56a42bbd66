"""Guidance: its scale, and the deviation of a guided prediction."""

from jaxtyping import Float
from torch import Tensor

from vala_research import InputError

MOST_GUIDANCE = 1000


def check_guidance(guidance_scale: float) -> None:
    """Refuse a guidance scale that is negative, not finite or huge."""
    if not 0 <= guidance_scale <= MOST_GUIDANCE:
        raise InputError(
            f"guidance_scale is {guidance_scale!r}: give a finite number of at least 0 (1 or "
            f"less turns it off) and at most {MOST_GUIDANCE}."
        )


def rescaled_guidance(
    guided: Float[Tensor, "f c h w"], prompted: Float[Tensor, "f c h w"], amount: float
) -> Float[Tensor, "f c h w"]:
    """Give each frame of a guided prediction the deviation of its unguided one; Lin et al. 2024.

    Eqs. (15), (16), arXiv 2305.08891. amount: 0 nothing, 1 wholly.
    """
    if amount == 0:
        return guided
    axes = list(range(1, guided.ndim))
    ratio = prompted.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (1 + amount * (ratio - 1))
