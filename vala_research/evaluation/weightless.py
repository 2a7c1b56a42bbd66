"""FLOPs and memory of whole edits, counted on networks without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel

from vala_research import InputError
from vala_research.diffusion.motion import load_motion_unet
from vala_research.diffusion.patching import patched
from vala_research.editing.extras import BARE
from vala_research.editing.fusion import Fusion
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.editing.source import Source
from vala_research.evaluation.flops import (
    STABLE_DIFFUSION_1_5,
    FlopCount,
    ShapesAlone,
    meta_unet,
)
from vala_research.evaluation.known_calls import KnownCalls
from vala_research.evaluation.memory import PROMPTS, LiveTensors

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


def weightless(
    pipe: VideoEditPipeline, fusions: Mapping[str, Fusion]
) -> tuple[VideoEditPipeline, dict[str, Fusion]]:
    """Copy a pipeline and its fusions without weights; networks still share what they shared."""
    # One empty tensor per tensor: a weight of two networks becomes one empty weight of both.
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    unets = [s.unet for fusion in fusions.values() for s in fusion.sources if s.unet is not None]
    memo: dict[int, Any] = {}
    for module in (*modules, *unets):
        for tensor in (*module.parameters(), *module.buffers()):
            memo[id(tensor)] = _empty(tensor)
    empty = VideoEditPipeline(**copy.deepcopy(pipe.components, memo))
    empty.set_progress_bar_config(disable=True)

    def bare(source: Source) -> Source:
        return replace(source, unet=copy.deepcopy(source.unet, memo))

    return empty, {
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
    """Build a weightless pipeline and its video model of these configurations.

    motion: of the MotionAdapter; None is AnimateDiff's. The tokenizer is the miniature's: all
    prompts are padded to one length.
    """
    small = VideoEditPipeline.from_pretrained("miniature", **BARE)
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
    """Answer code that asks a tensor of the meta device for values: 0 or 1; and yes to questions.

    An edit asks whether all values are finite, and what their extremes are.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype is torch.bool else 0.0
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            if str(kwargs.get("device")) == "cpu":  # the values of a small tensor
                return torch.ones_like(args[0], device="cpu", dtype=kwargs.get("dtype"))
        return func(*args, **kwargs)


def counted_edit(
    pipe: VideoEditPipeline, fusion: Fusion | None, n_frames: int, size: int, steps: int,
    known: KnownCalls | None = None, **call: Any,
) -> tuple[int, int]:  # fmt: skip
    """Count the FLOPs of one edit by a weightless pipeline, and the peak bytes of its live tensors.

    One multiply-add of a convolution, linear layer or attention is two FLOPs. The bytes contain
    neither weights nor scratch memory inside an operation.
    known: network calls that other edits of the same networks counted (None: no other edit).
    call: further arguments of the edit, such as a host.
    Raises InputError for a source with an adapter or a ControlNet, whose calls are not alike.
    """
    sources = [] if fusion is None else fusion.sources
    if any(source.adapter or source.controls for source in sources):
        raise InputError("An adapter or ControlNet acts at some steps only: count without them.")
    known = known or KnownCalls()
    skipped = known.flops
    unets = (pipe.unet, *(source.unet for source in sources))
    networks = {id(n): n for n in (pipe.vae.encoder, pipe.vae.decoder, *unets) if n is not None}
    clip = torch.empty(n_frames, 3, size, size, device=pipe.device)
    with ExitStack() as modes, torch.no_grad():
        live = modes.enter_context(LiveTensors())
        counter = modes.enter_context(FlopCount())
        for mode in (Weightless(), ShapesAlone()):
            modes.enter_context(mode)
        for network in networks.values():
            modes.enter_context(patched(network, known.patch(counter, live)))
        pipe(
            clip, *PROMPTS, num_inference_steps=steps, fusion=fusion, output_type="pt",
            **{"attention": "own"} | call,
        )  # fmt: skip
    return counter.total + known.flops - skipped, live.peak


def stored_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers; shared ones count once."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
