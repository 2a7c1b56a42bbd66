"""How a pipeline is made of its parts, loaded, and saved so that diffusers opens it."""

import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    ImageProcessingMixin,
    T5EncoderModel,
    T5Tokenizer,
)

from vala_research import number_in
from vala_research.diffusion.checkpoint import SECOND
from vala_research.diffusion.compatible import check_networks
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.options import load_options
from vala_research.diffusion.parts import load_parts, with_the_miniature
from vala_research.diffusion.patching import named_modules
from vala_research.diffusion.records import record_of
from vala_research.diffusion.vae import vae_factor
from vala_research.editing.defaults import EditDefaults, usual_defaults
from vala_research.editing.extras import EXTRAS, find_checkpoint, load_extras, save_extras
from vala_research.files import write_text

ENTRY = '''"""Open this folder by diffusers, with vala_research installed:

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

from vala_research import VideoEditPipeline  # noqa: F401
'''


RARE = ("transformer", "transformer_2", "text_encoder_3", "tokenizer_3")
OFFLOADING = {"_hf_hook", "_diffusers_hook"}  # attributes of modules under offload


class StableDiffusionParts(DiffusionPipeline):
    """A pipeline of the parts of Stable Diffusion 1.x, 2.x or XL, or of a video transformer.

    None is a part that is left out. transformer: of Wan or LTX, in place of the UNet; it is then
    `pipe.unet` too. transformer_2, boundary_ratio: of Wan 2.2, whose `transformer` denoises the
    levels above this fraction of T. text_encoder_3, tokenizer_3: of Stable Diffusion 3.
    text_encoder_2, tokenizer_2: of Stable Diffusion XL. force_zeros_for_empty_prompt: its empty
    negative prompt is read as zeros.
    nn.Module: a network compiled by torch. feature_extractor, image_encoder: of an IP-Adapter.
    safety_checker: is kept, and never called.
    """

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->text_encoder_3->image_encoder->unet->transformer->"
        "transformer_2->vae"
    )
    _optional_components = [
        "safety_checker", "feature_extractor", "image_encoder", "text_encoder_2", "tokenizer_2",
        "unet", "transformer", "transformer_2", "text_encoder_3", "tokenizer_3",
    ]  # fmt: skip
    _exclude_from_cpu_offload = ["safety_checker"]

    text_encoder_2: Any = None
    tokenizer_2: Any = None
    text_encoder_3: Any = None
    tokenizer_3: Any = None
    controlnet: ControlNetModel | None = None  # see `ControlMixin`
    edit_defaults: EditDefaults = EditDefaults()

    @property
    def _execution_device(self) -> torch.device:
        """Where networks compute, as in diffusers, which asks every module of each several times.

        Without hooks of offloading it is the device of the first weight.
        """
        networks = [part for part in self.components.values() if isinstance(part, nn.Module)]
        modules = (module for network in networks for _, module in named_modules(network))
        if any(vars(module).keys() & OFFLOADING for module in modules):
            return super()._execution_device
        first = next((p for network in networks for p in network.parameters()), None)
        return self.device if first is None else first.device

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | nn.Module | None,
        text_encoder: CLIPTextModel | nn.Module | None,
        tokenizer: CLIPTokenizer | T5Tokenizer | None,
        unet: UNet2DConditionModel | nn.Module | None,
        scheduler: SchedulerMixin | None,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: ImageProcessingMixin | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        text_encoder_2: CLIPTextModelWithProjection | nn.Module | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = True,
        transformer: nn.Module | None = None,
        transformer_2: nn.Module | None = None,
        boundary_ratio: float | None = None,
        text_encoder_3: T5EncoderModel | nn.Module | None = None,
        tokenizer_3: T5Tokenizer | None = None,
    ):
        super().__init__()
        denoiser = unet if transformer is None else transformer
        check_networks(
            vae, text_encoder, tokenizer, denoiser, scheduler, text_encoder_2, tokenizer_2,
            text_encoder_3, tokenizer_3,
        )
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        if transformer is None:
            self.register_modules(
                unet=unet, safety_checker=safety_checker, feature_extractor=feature_extractor,
                image_encoder=image_encoder,
            )  # fmt: skip
        else:
            self.register_modules(transformer=transformer)
            if transformer_2 is not None:
                number_in("boundary_ratio", boundary_ratio, 0, 1)
                self.register_to_config(boundary_ratio=boundary_ratio)
                self.register_modules(transformer_2=transformer_2)
            if record_of(transformer).joins_texts:
                self.register_modules(text_encoder_3=text_encoder_3, tokenizer_3=tokenizer_3)
            self.edit_defaults = usual_defaults(transformer)
        if text_encoder_2 is not None:  # else the folder of Stable Diffusion 1.x does not name it
            self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
            if transformer is None:
                self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self.vae_scale_factor = 8 if vae is None else vae_factor(vae)
        self._first_scheduler = scheduler

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `unet` follows `transformer` and `transformer_2`."""
        super().__setattr__(name, value)
        if name == "transformer" and value is not None:
            self.unet = value
        if name == "transformer_2" and value is not None:
            self.unet = Experts(self.transformer, value, self.config.boundary_ratio)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as in diffusers: only those that checkpoints of this family have.

        So `StableDiffusionPipeline(**pipe.components)` works, and the reverse.
        """
        parts = self._get_signature_keys(self)[0]
        rare = (*SECOND, *RARE) if "transformer" not in self.config else parts
        return {k: getattr(self, k) for k in parts if k not in rare or k in self.config}

    @property
    def zeros_are_empty(self) -> bool:
        """Whether zeros stand for the negative prompt where there is none."""
        return self.config.get("force_zeros_for_empty_prompt", False)

    @classmethod
    def from_pretrained(cls, name_or_path, dtype=None, **options):
        """Load "miniature", "miniature_flow", a local folder or a hub id.

        Of Stable Diffusion 1.x, 2.x, XL or 3, of Wan or of LTX, in the layout of diffusers.

        dtype, torch_dtype: of the networks (default float32), or a dictionary by their names; the
            solver works in float32 whatever it is.
        options: as in diffusers, or refused:
            vae, text_encoder, tokenizer, unet, scheduler, ... in place of the checkpoint's, also
            controlnet, motion_adapter, adapter, see `extras` (None leaves out what it brings);
            variant (one that is alone is found), revision, cache_dir, token, local_files_only;
            device_map: one device.
        Only safetensors are read. Raises InputError.
        """
        name, parts = str(name_or_path), (*cls._get_signature_types(), *EXTRAS)
        asked = load_options(dtype, options, parts)
        if name == "miniature_flow":
            asked = with_the_miniature(asked)
        folder, *brought = find_checkpoint(name, asked)
        parts = load_parts(name, folder, asked)
        pipe = cls(**{part: value for part, value in parts.items() if part not in EXTRAS})
        load_extras(pipe, name, folder, asked, *brought)
        pipe.register_to_config(_name_or_path=name)
        return pipe if asked.device is None else pipe.to(asked.device)

    def save_pretrained(
        self, save_directory: str | PathLike, safe_serialization: bool = True, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Save like every pipeline, with a `pipeline.py` by which plain diffusers opens it.

        DiffusionPipeline.from_pretrained(F, custom_pipeline=F, trust_remote_code=True) makes this
        class of the folder F, and StableDiffusionPipeline.from_pretrained(F) makes that one.
        safe_serialization: False warns, and safetensors are written: no pickle could be read again.
        """
        if not safe_serialization:
            warnings.warn(
                "safe_serialization=False would write pickles, which cannot be loaded here: "
                "safetensors are written.",
                stacklevel=2,
            )
        # What diffusers does not know goes first: it may upload the folder.
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "pipeline.py", ENTRY)
        save_extras(self, folder)
        with self._without_motion(), self._without_adapter():
            super().save_pretrained(str(folder), True, *args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any):
        """As in diffusers; what the checkpoint brought, or was loaded since, comes along."""
        if not isinstance(pipeline, cls):
            return super().from_pipe(pipeline, **kwargs)
        with pipeline._without_motion():
            pipe = super().from_pipe(pipeline, **kwargs)
        pipe.controlnet, pipe.edit_defaults = pipeline.controlnet, pipeline.edit_defaults
        pipe.more_controls = pipeline.more_controls
        if "unet" not in kwargs:  # motion modules and an adapter are inside the UNet
            pipe.unet, pipe.image_unet = pipeline.unet, pipeline.image_unet
            pipe.adapter, pipe.vision_encoder = pipeline.adapter, pipeline.vision_encoder
        return pipe
