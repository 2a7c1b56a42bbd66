"""Load the five parts of a checkpoint, each by its own class, and check that they can work."""

from pathlib import Path
from typing import Any

import torch

from vala_research import InputError, number_in
from vala_research.diffusion.checkpoint import PARTS, WITH_WEIGHTS, check_index
from vala_research.diffusion.loading import (
    FETCH,
    check_folder,
    check_types,
    load_network,
    read_json,
    reason_of,
)
from vala_research.diffusion.schedule import Schedule

MOST_TIMESTEPS = 100_000
# Calls that each network must understand; on the meta device nothing is computed.
PROBES = {
    "vae": lambda vae: vae(torch.empty(1, 3, 32, 32, device="meta")),
    "text_encoder": lambda text: text(torch.zeros(1, 1, dtype=torch.long, device="meta")),
    "unet": lambda unet: unet(
        torch.empty(1, unet.config.in_channels, 8, 8, device="meta"),
        torch.ones(1, dtype=torch.long, device="meta"),
        torch.empty(1, 2, unet.config.cross_attention_dim, device="meta"),
    ),
}


def load_parts(
    name: str, folder: Path, dtype: torch.dtype, variant: str | None = None
) -> dict[str, Any]:
    """Load the five parts of a checkpoint that `resolve_checkpoint` found, each by its own class.

    variant: of the weights, where a part has it. Raises InputError, also for values out of range.
    """
    import diffusers
    import transformers

    homes, parts = {"diffusers": diffusers, "transformers": transformers}, {}
    index = check_index(folder / "model_index.json", name)
    if variant and not any(folder.glob(f"*/*.{variant}*safetensors")):
        raise InputError(f"The checkpoint {name!r} has no weights of the variant {variant!r}.")
    for part, (library, _) in PARTS.items():
        cls, what = getattr(homes[library], index[part][1]), f"The {part} of {name!r}"
        if part in WITH_WEIGHTS:
            has_variant = variant and any((folder / part).glob(f"*.{variant}*safetensors"))
            given = {"variant": variant} if has_variant else {}
            parts[part] = load_network(
                cls, folder / part, what, dtype=dtype, probe=PROBES[part], **given
            )
            continue
        try:
            check_folder(folder / part)
            if part == "scheduler":
                file = folder / part / "scheduler_config.json"
                check_types(read_json(file), cls, file, MOST_TIMESTEPS)
            parts[part] = cls.from_pretrained(folder / part, local_files_only=True)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"{what} cannot be loaded ({reason_of(error)}): {FETCH}") from error
    check_parts(name, **parts)
    return parts


def check_networks(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
    """Check that networks of a pipeline fit each other. None is a part that is left out.

    Raises InputError.
    """
    if None not in (unet, vae) and unet.config.in_channels != vae.config.latent_channels:
        raise InputError(
            f"The UNet reads {unet.config.in_channels} channels and the VAE makes "
            f"{vae.config.latent_channels}: inpainting and depth checkpoints are not "
            "supported, give a text-to-image one."
        )


def check_parts(name: str, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any):
    """Check the numbers by which the parts work. Raises InputError."""
    of = f"of {name!r}"
    number_in(f"The VAE's scaling_factor {of}", vae.config.scaling_factor, 1e-3, 1e3)
    number_in(f"The VAE's shift_factor {of}", vae.config.shift_factor or 0, -1e3, 1e3)
    number_in(f"The tokenizer's length {of}", tokenizer.model_max_length, 3, float("inf"))
    size = unet.config.sample_size
    if size is not None:
        sides = size if isinstance(size, list | tuple) else (size,)
        for side in sides:
            number_in(f"The UNet's sample_size {of}", side, 1, 1024, whole=True)

    # Noise grows along the levels, and the first can be undone.
    try:
        levels = scheduler.alphas_cumprod
        is_right = bool(1 > levels[0] > 0 <= levels[-1] and (levels[1:] < levels[:-1]).all())
        Schedule.from_scheduler(scheduler, 1)
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        is_right = False
    if not is_right:
        raise InputError(f"The scheduler {of} makes no noise levels that fall from 1 to 0: {FETCH}")
