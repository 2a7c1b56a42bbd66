"""A fused edit costs the sum of its sources in time and the largest in memory: counted.

Counted on whole edits, from pixels to pixels, by the pipeline itself: its networks are on the meta
device, have shapes and no numbers, and whatever asks for a value gets an answer that lets it go on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, MotionAdapter
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from vala_research.diffusion.editing import Fusion, Source, VideoEditPipeline
from vala_research.diffusion.motion import load_motion_unet
from vala_research.evaluation.costs import STABLE_DIFFUSION_1_5, meta_unet
from vala_research.evaluation.fusion_study import FUSED, IMAGE, VIDEO
from vala_research.evaluation.memory import MEBIBYTE, LiveTensors
from vala_research.methods.fusion import FusionSchedule

# The rest of Stable Diffusion 1.5, and AnimateDiff's second version (v1-5-2) by MotionAdapter's own
# defaults.
VAE_1_5 = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
TEXT_1_5 = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=77,
)  # fmt: skip
PROMPTS = ("a blue circle", "a red circle")
NEVER = FusionSchedule(tau=1.0)


def weightless(
    pipe: VideoEditPipeline, fusions: Mapping[str, Fusion]
) -> tuple[VideoEditPipeline, dict[str, Fusion]]:
    """The pipeline and its fusions without weights; what networks share they go on sharing."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    unets = [s.unet for fusion in fusions.values() for s in fusion.sources if s.unet is not None]
    memo: dict[int, Any] = {}
    for module in (*modules, *unets):
        for tensor in (*module.parameters(), *module.buffers()):
            memo[id(tensor)] = _empty(tensor)
    parts = copy.deepcopy(pipe.components, memo)
    found = VideoEditPipeline(**parts)
    found.set_progress_bar_config(disable=True)

    def bare(source: Source) -> Source:
        return replace(source, unet=copy.deepcopy(source.unet, memo))

    return found, {
        name: replace(fusion, sources=[bare(s) for s in fusion.sources])
        for name, fusion in fusions.items()
    }


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty


def stable_diffusion(
    unet: Mapping = STABLE_DIFFUSION_1_5, vae: Mapping = VAE_1_5, text: Mapping = TEXT_1_5,
    motion: Mapping | None = None, dtype: torch.dtype = torch.float16,
) -> tuple:  # fmt: skip
    """A pipeline and its video model of these configurations, weightless.

    motion: of the MotionAdapter; None is AnimateDiff's. Words are read by the miniature's
    tokenizer: all prompts are padded to one length.
    """
    small = VideoEditPipeline.from_pretrained("miniature")
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.model_max_length = text["max_position_embeddings"]
    with torch.device("meta"):
        image = meta_unet(unet).to(dtype)
        coder = AutoencoderKL(**vae).to(dtype)
        reader = CLIPTextModel(CLIPTextConfig(**text)).to(dtype)
        video = load_motion_unet(image, MotionAdapter(**motion or {}).to(dtype))
    pipe = VideoEditPipeline(coder, reader, tokenizer, image, small.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe, video


class Weightless(TorchDispatchMode):
    """Code that asks a tensor of the meta device for a value goes on: numbers are 0, answers yes.

    What is asked on the way of an edit is whether all is finite, and between which numbers.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype is torch.bool else 0.0
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device is one operation that keeps no scores, as its kernels do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]  # a mask changes neither count nor shape
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def counted_edit(
    pipe: VideoEditPipeline, fusion: Fusion | None, n_frames: int, size: int, steps: int
) -> tuple[int, int]:
    """FLOPs of one edit by a weightless pipeline, and the peak bytes of its live tensors.

    FLOPs are two for each multiply-add of convolutions, linear layers and attention. No scratch
    memory inside an operation is seen, and no weights.
    """
    clip = torch.empty(n_frames, 3, size, size, device=pipe.device)
    with ExitStack() as modes, torch.no_grad():
        live = modes.enter_context(LiveTensors())
        counter = modes.enter_context(FlopCounterMode(display=False))
        for mode in (Weightless(), FusedAttention()):
            modes.enter_context(mode)
        pipe(
            clip, *PROMPTS, num_inference_steps=steps, attention="own", fusion=fusion,
            output_type="pt",
        )  # fmt: skip
    return counter.get_total_flops(), live.peak


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, those that are shared once."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def cost_rows(
    pipe: VideoEditPipeline,
    fusions: Mapping[str, Fusion],
    n_frames: Iterable[int],
    size: int,
    steps: int = 50,
    counted: tuple[int, int] = (1, 2),
) -> list[dict]:
    """A row a clip length and fusion: tflop of an edit of `steps` both ways, memory in MiB.

    Every step costs as much as another: edits of `counted` steps tell what any number costs.
    weights: of all networks that the edit asks; live: the peak of all other tensors, after
    counted[1] steps; peak: both. setting: the name; a fusion that never fuses is its source 0.
    """
    rows = []
    for n in n_frames:
        for name, fusion in fusions.items():
            (few, _), (more, live) = (counted_edit(pipe, fusion, n, size, k) for k in counted)
            step = (more - few) / (counted[1] - counted[0])
            weights = stored_bytes(pipe.vae, pipe.text_encoder, *networks(pipe, fusion))
            rows.append(
                {"setting": name, "frames": n, "steps": steps,
                 "tflop": (few + (steps - counted[0]) * step) / 1e12,
                 "weights": weights / MEBIBYTE, "live": live / MEBIBYTE,
                 "peak": (weights + live) / MEBIBYTE}
            )  # fmt: skip
    return rows


def networks(pipe: VideoEditPipeline, fusion: Fusion) -> list[nn.Module]:
    """The denoisers that a fusion asks."""
    sources = fusion.sources[:1] if fusion.schedule == NEVER else fusion.sources
    return [pipe.unet if source.unet is None else source.unet for source in sources]


def source_fusions(
    video: nn.Module | None,
    schedule: FusionSchedule = FusionSchedule(),  # noqa: B008 - frozen
    window: int | None = None,
    image_window: int | None = None,
) -> dict[str, Fusion]:
    """The image model alone, frame by frame, the video model alone, and both.

    window: frames that the video model sees at once; image_window: those of the image model, which
    change nothing but its memory.
    """
    image = Source(attention="own", window=image_window, overlap=0)
    models = {IMAGE: image, VIDEO: Source(video, window=window)}
    alone = {name: Fusion([source] * 2, NEVER) for name, source in models.items()}
    return alone | {FUSED: Fusion(list(models.values())[::-1], schedule)}


def aims(rows: Sequence[Mapping], flops: float = 1.05, memory: float = 1.1) -> list[dict]:
    """A row a clip length and aim: the fused edit over the sum, or the largest, of single models.

    rows: of `cost_rows` or `measured_rows`; which of tflop, seconds, peak they have is looked at.
    """
    found = []
    for n in dict.fromkeys(row["frames"] for row in rows):
        given = {row["setting"]: row for row in rows if row["frames"] == n}
        fused = given.pop(FUSED)
        for key, among, aim in (("tflop", sum, flops), ("seconds", sum, flops),
                                ("peak", max, memory)):  # fmt: skip
            if key in fused:
                ratio = fused[key] / among(row[key] for row in given.values())
                found.append({"frames": n, "quantity": key, "ratio": ratio, "aim": aim,
                              "is_reached": ratio <= aim})  # fmt: skip
    return found
