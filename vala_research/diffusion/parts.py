"""Load the parts of a checkpoint, each by its own class, and check that they can work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from vala_research import InputError, miniature_path, number_in
from vala_research.diffusion.checkpoint import PARTS, WITH_WEIGHTS, check_index, parts_of
from vala_research.diffusion.compatible import check_networks
from vala_research.diffusion.controlnet import check_controlnet
from vala_research.diffusion.loading import (
    FETCH,
    check_folder,
    check_types,
    load_network,
    read_json,
    reason_of,
)
from vala_research.diffusion.options import LoadOptions
from vala_research.diffusion.records import record_of, text_width
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.solvers import check_scheduler, is_flow
from vala_research.diffusion.vae import is_temporal
from vala_research.diffusion.variants import variant_of

MOST_TIMESTEPS = 100_000
LOG = logging.get_logger("diffusers.pipelines.pipeline_utils")  # where diffusers tells of its parts
# Calls that each network must understand; on the meta device nothing is computed.
def probe_vae(vae: Any) -> None:
    """Encode a frame of 32 pixels, and decode it where that is cheap."""
    pixels = torch.empty(1, 3, 32, 32, device="meta")
    vae.encode(pixels[:, :, None]) if is_temporal(vae) else vae(pixels)


def probe_text(text_encoder: Any) -> None:
    """Read one token."""
    text_encoder(torch.zeros(1, 1, dtype=torch.long, device="meta"))


def probe_denoiser(network: Any) -> None:
    """Denoise one frame."""
    z = torch.empty(1, 1, network.config.in_channels, 8, 8, device="meta")
    text = torch.empty(1, 1, 3, text_width(network), device="meta")
    record_of(network).call(network, z, 1, text, (64, 64, 1), {})


PROBES = {
    "vae": probe_vae, "text_encoder": probe_text, "text_encoder_2": probe_text,
    "text_encoder_3": probe_text,
    "unet": probe_denoiser, "transformer": probe_denoiser, "transformer_2": probe_denoiser,
}  # fmt: skip


def load_parts(name: str, folder: Path, options: LoadOptions) -> dict[str, Any]:
    """Load the parts of a checkpoint that `resolve_checkpoint` found, each by its own class.

    Parts that the options give are taken as they are. Raises InputError, also for values out of
    range.
    """
    import diffusers
    import transformers

    homes = {"diffusers": diffusers, "transformers": transformers}
    parts, variant = dict(options.parts), options.hub.get("variant")
    index = check_index(folder / "model_index.json", name, parts)
    if variant and not any(folder.glob(f"*/*.{variant}*safetensors")):
        raise InputError(
            f"The checkpoint {name!r} has no weights of the variant {variant!r}: leave it out."
        )
    own = parts_of(index)
    for part, (library, _) in own.items():
        if part in parts:
            continue
        cls, what = getattr(homes[library], index[part][1]), f"The {part} of {name!r}"
        if part in WITH_WEIGHTS:
            parts[part] = _network(cls, part, name, folder, options, probe=PROBES[part])
            LOG.info(f"Loaded {part} as {cls.__name__} from {name!r}.")
            continue
        try:
            check_folder(folder / part)
            if part == "scheduler":
                file = folder / part / "scheduler_config.json"
                check_types(read_json(file), cls, file, MOST_TIMESTEPS)
            parts[part] = cls.from_pretrained(folder / part, local_files_only=True)
            LOG.info(f"Loaded {part} as {cls.__name__} from {name!r}.")
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"{what} cannot be loaded ({reason_of(error)}): {FETCH}") from error
    if "transformer" in own:
        networks = {part: parts[part] for part in own if part != "transformer_2"}
        networks["unet"] = networks.pop("transformer")
        check_networks(**networks)
        check_parts(name, **{part: networks[part] for part in PARTS})
        if "transformer_2" in own and "boundary_ratio" not in parts:
            parts["boundary_ratio"] = index.get("boundary_ratio")
        return {"unet": None, **parts}
    check_networks(**{part: parts[part] for part in own})
    check_parts(name, **{part: parts[part] for part in PARTS})
    zeros = "force_zeros_for_empty_prompt"
    if own != PARTS and zeros not in parts:
        parts[zeros] = index.get(zeros) is not False
    return {**image_parts(name, folder, index, options), **parts}


def with_the_miniature(options: LoadOptions) -> LoadOptions:
    """The options, with the miniature's VAE and words where they name none.

    Its flow model works in the latent space of its UNet, and has no such parts in its own folder.
    """
    given = {"scheduler": None, "unet": None, **options.parts}
    shared = load_parts("miniature", Path(miniature_path()), replace(options, parts=given))
    names = ("vae", "text_encoder", "tokenizer")
    return replace(options, parts={name: shared[name] for name in names} | options.parts)


def image_parts(
    name: str, folder: Path, index: dict[str, Any], options: LoadOptions
) -> dict[str, Any]:
    """Load what an IP-Adapter reads pictures with, where a pipeline was saved with it."""
    import transformers

    cls = transformers.CLIPVisionModelWithProjection
    asked = {"image_encoder", "feature_extractor"} - set(options.parts)
    is_there = index.get("image_encoder") == ["transformers", cls.__name__]
    if not is_there or not (folder / "image_encoder").is_dir():
        return {}
    loaded: dict[str, Any] = {}
    if "image_encoder" in asked:
        loaded["image_encoder"] = _network(cls, "image_encoder", name, folder, options)
    if "feature_extractor" in asked and (folder / "feature_extractor").is_dir():
        check_folder(folder / "feature_extractor")
        loaded["feature_extractor"] = transformers.CLIPImageProcessor.from_pretrained(
            folder / "feature_extractor", local_files_only=True
        )
    return loaded


def control_part(name: str, folder: Path, options: LoadOptions, unet: Any) -> dict[str, Any]:
    """Load the ControlNet of a checkpoint, unless the options give one or leave it out."""
    from diffusers import ControlNetModel

    if "controlnet" in options.parts:
        return {}
    controlnet = _network(ControlNetModel, "controlnet", name, folder, options)
    check_controlnet(controlnet, unet, f"The controlnet of {name!r}")
    return {"controlnet": controlnet}


def motion_part(name: str, folder: Path, options: LoadOptions) -> Any:
    """Load the motion modules of a checkpoint, a MotionAdapter."""
    from diffusers import MotionAdapter

    return _network(MotionAdapter, "motion_adapter", name, folder, options)


def _network(
    cls: type, part: str, name: str, folder: Path, options: LoadOptions, **more: Any
) -> Any:
    """Load a part with weights, in the precision and of the variant that the options ask for."""
    what = f"The {part} of {name!r}"
    files = [file.name for file in (folder / part).glob("*.safetensors")]
    chosen = variant_of(files, options.hub.get("variant"), what)
    given = {} if chosen is None else {"variant": chosen}
    return load_network(cls, folder / part, what, dtype=options.dtype(part), **given, **more)


def check_parts(name: str, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any):
    """Check the numbers by which the parts work. Raises InputError."""
    of = f"of {name!r}"
    if vae is not None and not is_temporal(vae):
        number_in(f"The VAE's scaling_factor {of}", vae.config.scaling_factor, 1e-3, 1e3)
        number_in(f"The VAE's shift_factor {of}", vae.config.shift_factor or 0, -1e3, 1e3)
    if tokenizer is not None:
        number_in(f"The tokenizer's length {of}", tokenizer.model_max_length, 3, float("inf"))
    size = None if unet is None else unet.config.get("sample_size")
    if size is not None:
        sides = size if isinstance(size, list | tuple) else (size,)
        for side in sides:
            number_in(f"The UNet's sample_size {of}", side, 1, 1024, whole=True)

    # Noise grows along the levels, and the first can be undone.
    if scheduler is None:
        return
    check_scheduler(scheduler)
    try:
        if is_flow(scheduler):
            levels = torch.tensor(Schedule.from_scheduler(scheduler, 4, n_tokens=1024).flow)
            is_right = bool((levels[1:] < levels[:-1]).all() and levels[-1] < 1e-3)
            return _check_levels(is_right, of)
        levels = scheduler.alphas_cumprod
        is_right = bool(1 > levels[0] > 0 <= levels[-1] and (levels[1:] < levels[:-1]).all())
        Schedule.from_scheduler(scheduler, 1)
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        is_right = False
    _check_levels(is_right, of)


def _check_levels(is_right: bool, of: str) -> None:
    if not is_right:
        raise InputError(f"The scheduler {of} makes no noise levels that fall from 1 to 0: {FETCH}")
