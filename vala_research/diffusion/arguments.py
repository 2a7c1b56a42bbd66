"""What a call is given is refused before any work is done, never after."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.codec import OUTPUT_TYPES, check_guidance
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.schedule import Schedule


def check_call(
    guidance_scale: float,
    output_type: str,
    generator: Any,
    asked: Sequence[str],
    offered: Sequence[str],
) -> None:
    """asked: tensors the callback wants, of those offered."""
    check_guidance(guidance_scale)
    if output_type not in OUTPUT_TYPES:
        raise InputError(
            f"Unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}."
        )
    if isinstance(generator, list) and len(generator) != 1:
        raise InputError(
            f"generator is a list of {len(generator)}: a call edits one clip, give one generator."
        )
    unknown = [name for name in asked if name not in offered]
    if unknown:
        raise InputError(
            f"The callback asks for {', '.join(unknown)}: choose from {', '.join(offered)}."
        )


def check_latents(latents: Tensor, n_channels: int) -> Float[Tensor, "f c h w"]:
    """Latents of one clip, with or without a batch axis of one."""
    z = latents[0] if latents.ndim == 5 and len(latents) == 1 else latents
    if z.ndim != 4 or z.shape[1] != n_channels or 0 in z.shape:
        raise InputError(
            f"The latents have shape {tuple(latents.shape)}: give those of one clip, "
            f"frames x {n_channels} x height x width."
        )
    return z


def check_steps(latents: Inversion, schedule: Schedule) -> None:
    """An inversion that knows its steps is used with as many."""
    if latents.null_text is not None:
        n_steps = len(latents.null_text.embeddings)
    else:
        n_steps = len(latents.trajectory) - 1 if latents.trajectory else len(schedule)
    if n_steps != len(schedule):
        raise InputError(
            f"The inversion given as latents has {n_steps} steps and the "
            f"edit has {len(schedule)}: use the same num_inference_steps for both."
        )
