"""One contract for every UNet, and one reversible way to change it.

The only module that finds checkpoints. Frames `f` and guidance branches `g` are explicit axes
everywhere else; they are flattened here, and nowhere else. Peak memory is bounded by looping the
heavy per-frame modules over chunks of frames, which changes nothing in the result.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError, miniature_path

UNet = UNet2DConditionModel | UNetMotionModel | UNet3DConditionModel
VIDEO_UNETS = (UNetMotionModel, UNet3DConditionModel)

# Modules of video models that look along time, by their names in diffusers.
TEMPORAL = ("motion_modules", "temp_attentions", "temp_convs", "transformer_in")

# Latent sites (images x height x width) that one call of a per-frame module may see: the
# feed-forward layers of Stable Diffusion 1.5 then work in about 0.7 GB (fp16), whatever the length
# of the clip.
SITES_PER_CHUNK = 2**16

PARTS = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "scheduler": (),
}
WITH_WEIGHTS = ("vae", "text_encoder", "unet")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


# Patching a UNet.


@dataclass(frozen=True)
class Patch:
    """A change to every module that `select(name, module)` picks.

    processor: `(name, attention) -> attention processor`, or
    forward: `(name, module, original_forward) -> new forward`.
    """

    select: Callable[[str, nn.Module], bool]
    processor: Callable[[str, Attention], Any] | None = None
    forward: Callable[[str, nn.Module, Callable], Callable] | None = None


@contextmanager
def patched(unet: nn.Module, *patches: Patch) -> Iterator[int]:
    """Change a UNet for the length of a `with` block; yields how many modules were changed.

    Restores on leaving, exceptions included; nests, the inner block wrapping what the outer one
    set.
    Raises LookupError when a patch picks no module, since it would silently do nothing.
    """
    with ExitStack() as undo:
        modules, count = list(unet.named_modules()), 0
        for patch in patches:
            targets = [(n, m) for n, m in modules if patch.select(n, m)]
            if not targets:
                raise LookupError(f"A patch found no module to change in {type(unet).__name__}.")
            for name, module in targets:
                undo.callback(_apply(patch, name, module))
            count += len(targets)
        yield count


def _apply(patch: Patch, name: str, module: nn.Module) -> Callable[[], None]:
    """Apply one patch to one module; returns what undoes it."""
    if patch.processor is not None:
        old = module.get_processor()
        module.set_processor(patch.processor(name, module))
        return lambda: module.set_processor(old)
    was_wrapped, old = "forward" in module.__dict__, module.forward
    module.forward = patch.forward(name, module, old)
    return lambda: (
        setattr(module, "forward", old) if was_wrapped else module.__dict__.pop("forward")
    )


def is_temporal(name: str) -> bool:
    """Part of what makes a video model of an image model: it sees all frames at once."""
    return any(part in TEMPORAL for part in name.split("."))


def is_self_attention(name: str, module: nn.Module) -> bool:
    """Spatial self-attention: neither cross-attention nor a video model's attention in time."""
    return (
        isinstance(module, Attention)
        and name.rpartition(".")[2] == "attn1"
        and not is_temporal(name)
        and not module.is_cross_attention
    )


def is_heavy_per_frame(name: str, module: nn.Module) -> bool:
    """Modules that see one frame at a time and whose working memory dwarfs their output."""
    if is_temporal(name):
        return False
    if isinstance(module, Attention):
        return name.rpartition(".")[2] == "attn2"
    if isinstance(module, Downsample2D | Upsample2D):
        return ".resnets." not in name
    return isinstance(module, ResnetBlock2D | FeedForward)


def chunks(n_frames: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` frames."""
    if size < 1:
        raise InputError(f"frames_per_chunk is {size}: give 1 or more, or None to choose it.")
    return [slice(i, min(i + size, n_frames)) for i in range(0, n_frames, size)]


def chunking(n_branches: int, frames_per_chunk: int) -> Patch:
    """Loop the heavy per-frame modules over frames; a chunk holds all guidance branches."""

    def wrap(_name: str, _module: nn.Module, forward: Callable) -> Callable:
        def looped(*args: Any, **kwargs: Any) -> Tensor:
            # The first tensor is the module's input; some UNets pass it by keyword.
            x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            n_frames, out = len(x) // n_branches, None

            def part(value: Any, frames: slice) -> Any:
                if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(x):
                    return value
                return value.unflatten(0, (n_branches, n_frames))[:, frames].flatten(0, 1)

            for frames in chunks(n_frames, frames_per_chunk):
                y = forward(
                    *(part(a, frames) for a in args),
                    **{k: part(v, frames) for k, v in kwargs.items()},
                ).unflatten(0, (n_branches, -1))
                if out is None:  # g f ..., now that the shape of a chunk is known
                    out = y.new_empty(n_branches, n_frames, *y.shape[2:])
                out[:, frames] = y
            return out.flatten(0, 1)

        return looped

    return Patch(is_heavy_per_frame, forward=wrap)


# Calling a UNet.


@dataclass
class Backbone:
    """A UNet as `(z, t, text) -> prediction`, with frames and guidance branches as axes.

    frames_per_chunk: how many frames the heavy modules see at once; None chooses from the
    resolution. n_frame_forwards counts single frames through the network, all branches included.
    """

    unet: UNet
    frames_per_chunk: int | None = None
    n_frame_forwards: int = 0

    def __call__(
        self,
        z: Float[Tensor, "g f c h w"],
        t: int,
        text: Float[Tensor, "g n d"] | Float[Tensor, "g rows n d"],
        patches: Sequence[Patch] = (),
        added: dict[str, Tensor] | None = None,
        residuals: dict[str, Any] | None = None,
    ) -> Float[Tensor, "g f c h w"]:
        """The network's prediction at timestep t, in the precision of z.

        text: one prompt a branch, or one a frame of it (rows = f, or 1 that the frames share).
        added: SDXL's conditions, one row a branch. residuals: a ControlNet's, (g f) rows each, by
        the UNet's argument names. Raises FloatingPointError when the network returns NaN or
        infinity.
        """
        (g, f), dtype = z.shape[:2], self.unet.dtype
        has_time_axis = isinstance(self.unet, VIDEO_UNETS)
        x = rearrange(z, "g f c h w -> g c f h w" if has_time_axis else "g f c h w -> (g f) c h w")
        rows = (text[:, None] if text.ndim == 3 else text).to(dtype)
        if rows.shape[1] not in (1, f):
            raise InputError(
                f"There are {rows.shape[1]} rows of text for {f} frames: give one a frame, or one."
            )
        if isinstance(self.unet, UNet3DConditionModel):  # it repeats the prompt for every frame
            if rows.shape[1] > 1:
                raise InputError(
                    "A UNet3DConditionModel reads one prompt for all frames: leave tokens of "
                    "single frames out."
                )
            kwargs = {"encoder_hidden_states": rows[:, 0]}
        else:
            kwargs = {"encoder_hidden_states": rows.expand(-1, f, -1, -1).flatten(0, 1)}
        kwargs |= residuals or {}
        if added is not None:
            n_rows = 1 if has_time_axis else f
            kwargs["added_cond_kwargs"] = {
                k: repeat(v, "g d -> (g f) d", f=n_rows) for k, v in added.items()
            }
        size = self.chunk_size(f, g, *z.shape[-2:])
        if size < f:
            patches = [*patches, chunking(g, size)]
        with patched(self.unet, *patches):
            out = self.unet(x.to(dtype), t, return_dict=False, **kwargs)[0].to(z.dtype)
        self.n_frame_forwards += g * f
        if not torch.isfinite(out).all():
            raise FloatingPointError(
                f"The network returned NaN or infinity at diffusion step t={t} in {dtype}: "
                "run it in torch.float32 or torch.bfloat16, or check the checkpoint's weights."
            )
        if has_time_axis:
            return rearrange(out, "g c f h w -> g f c h w")
        return rearrange(out, "(g f) c h w -> g f c h w", f=f)

    def frames_seen(self, x: Float[Tensor, "g f c h w"]) -> int:
        """Frames a chunk of such an input."""
        return self.chunk_size(x.shape[1], x.shape[0], *x.shape[3:])

    def chunk_size(self, n_frames: int, n_branches: int, height: int, width: int) -> int:
        """Frames a chunk: as asked, or as many as SITES_PER_CHUNK allows, at least one."""
        if self.frames_per_chunk is not None:
            return min(n_frames, self.frames_per_chunk)
        return min(n_frames, max(1, SITES_PER_CHUNK // (n_branches * height * width)))


# Finding a checkpoint.


def resolve_checkpoint(name_or_path: str, **hub: Any) -> str:
    """The local folder of a checkpoint: "miniature", a folder, or a hub id (downloaded if need be).

    hub: `revision`, `cache_dir`, `token`, `variant`, `local_files_only`, as diffusers understands
    them.
    Raises InputError when it is not a complete Stable Diffusion 1.x/2.x checkpoint in safetensors.
    """
    name = str(name_or_path)
    folder = Path(miniature_path() if name == "miniature" else name)
    if folder.is_file():
        raise InputError(
            f"The model {name!r} is a file: give the folder that holds model_index.json."
        )
    if not folder.is_dir():
        if name == "miniature":
            raise InputError(
                "The miniature's weights are missing from this installation: install it again, "
                "or train them with python -m vala_research.miniature."
            )
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(
                f"Unknown model {name!r}: give 'miniature', an existing folder that holds "
                "model_index.json, or a hub id such as "
                "'stable-diffusion-v1-5/stable-diffusion-v1-5'."
            )
        folder = Path(_download(name, **hub))
    _check_index(folder / "model_index.json", name)
    for part in PARTS:
        _check_part(folder / part, name)
    return str(folder)


@contextmanager
def silenced(logging: ModuleType) -> Iterator[None]:
    """No warnings within the block; logging: `diffusers.utils.logging` or that of transformers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_vision_tower(name_or_path: str) -> nn.Module:
    """The vision half of a CLIP model, frozen, float32: "miniature", a folder, or a hub id.

    Weights in safetensors only. Raises InputError when there is none of that name.
    """
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    name = str(name_or_path)
    folder = miniature_path("clip") if name == "miniature" else name
    try:
        with silenced(logging):  # the text half, if there, is rightly left out
            model = CLIPVisionModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"The vision encoder {name!r} cannot be loaded: give a folder or hub id of a CLIP "
            "model with safetensors weights."
        ) from error
    return model.eval().requires_grad_(False)


def _download(name: str, **hub: Any) -> str:
    """Fetch a hub checkpoint after its index has shown that it is of the right class."""
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import errors as e
    from huggingface_hub import hf_hub_download

    few = {
        k: v for k, v in hub.items() if k in ("revision", "cache_dir", "token", "local_files_only")
    }
    try:
        _check_index(Path(hf_hub_download(name, "model_index.json", **few)), name)
        return StableDiffusionPipeline.download(
            name, safety_checker=None, feature_extractor=None, use_safetensors=True, **hub
        )
    except InputError:
        raise
    except (
        e.LocalEntryNotFoundError,
        e.OfflineModeIsEnabled,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise InputError(
            f"The model {name!r} is not on this machine and the hub cannot be reached: connect "
            "to the "
            "network, or download it elsewhere and give its folder, or use 'miniature'."
        ) from error
    except (e.RepositoryNotFoundError, e.HFValidationError) as error:
        raise InputError(
            f"The hub has no model {name!r} open to you: check the spelling, or log in if it "
            "is gated."
        ) from error
    except (e.EntryNotFoundError, e.HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"The model {name!r} cannot be downloaded as a Stable Diffusion checkpoint in "
            "safetensors "
            f"({str(error).strip().splitlines()[0]}): choose one whose repository holds "
            "model_index.json and .safetensors weights."
        ) from error


def _check_index(index: Path, name: str) -> None:
    """Refuse another class of checkpoint by what its index says, before any weight is read."""
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"The folder {name!r} holds no model_index.json: give a folder in the diffusers layout."
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(
            f"The model_index.json of {name!r} cannot be read: fetch it again."
        ) from error
    found = parts.get("_class_name", "unknown")
    for part, classes in PARTS.items():
        entry = parts.get(part)
        cls = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if cls is None or (classes and cls not in classes) or parts.get("text_encoder_2"):
            raise InputError(
                f"The checkpoint {name!r} is a {found}, whose {part} is {cls or 'missing'}: "
                "give one of Stable Diffusion 1.x or 2.x (StableDiffusionPipeline)."
            )


def _check_part(folder: Path, name: str) -> None:
    """A part of the checkpoint is there, and its weights are safetensors."""
    files: Iterable[Path] = list(folder.iterdir()) if folder.is_dir() else []
    if not files:
        raise InputError(f"The checkpoint {name!r} lacks its {folder.name} folder: fetch it again.")
    if folder.name not in WITH_WEIGHTS or any(f.suffix == ".safetensors" for f in files):
        return
    if any(f.suffix in PICKLES for f in files):
        raise InputError(
            f"The {folder.name} of {name!r} has pickled weights only, which can run code when "
            "opened: "
            "convert them to safetensors, or choose a checkpoint that ships safetensors."
        )
    raise InputError(f"The {folder.name} of {name!r} has no weights: fetch its .safetensors file.")


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels a latent site spans: 8 for Stable Diffusion."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
