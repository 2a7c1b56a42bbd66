"""The device under test, the size of the networks, and how time and memory are measured there."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vala_research import InputError, miniature_path
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.evaluation.flops import STABLE_DIFFUSION_1_5, WAN_1_3B
from vala_research.evaluation.memory import forget_peak, peak_mebibytes
from vala_research.evaluation.weightless import TEXT_1_5, VAE_1_5


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    unet, vae, text: configurations. dtype: of these networks. side: of the frames, in pixels.
    frames: clip lengths, ascending. steps: the two numbers of steps that are timed. repeats: the
    best of so many is taken. checked_frames, checked_side, checked_steps: of the edits that are
    compared with the CPU. filtered: shapes of latents. copied: bytes; their copy gives the
    bandwidth. transformer, transformer_dtype, latents: a video transformer, and frames, height and
    width of its latents. cards: GB of smaller cards.
    """

    unet: dict = field(default_factory=lambda: dict(STABLE_DIFFUSION_1_5))
    vae: dict = field(default_factory=lambda: dict(VAE_1_5))
    text: dict = field(default_factory=lambda: dict(TEXT_1_5))
    dtype: torch.dtype = torch.float16
    side: int = 512
    frames: tuple[int, ...] = (8, 16, 32)
    steps: tuple[int, int] = (2, 4)
    repeats: int = 5
    checked_frames: int = 4
    checked_side: int = 64
    checked_steps: int = 3
    filtered: tuple[tuple[int, int, int, int], ...] = ((32, 4, 64, 64), (16, 4, 128, 128))
    copied: int = 2**28
    transformer: dict = field(default_factory=lambda: dict(WAN_1_3B))
    transformer_dtype: torch.dtype = torch.bfloat16
    latents: tuple[int, int, int] = (21, 60, 104)
    cards: tuple[float, ...] = (15, 8, 4)


FULL = Scale()
TINY = Scale(
    unet=STABLE_DIFFUSION_1_5
    | dict(block_out_channels=(8, 16, 16, 16), norm_num_groups=4, layers_per_block=1,
           attention_head_dim=2, cross_attention_dim=16),
    vae=VAE_1_5 | dict(block_out_channels=(4, 8, 8, 8), norm_num_groups=4, layers_per_block=1),
    text=TEXT_1_5 | dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2),
    dtype=torch.float32, side=64, frames=(2, 3), steps=(1, 4), repeats=1, checked_frames=2,
    checked_side=32, checked_steps=1, filtered=((2, 4, 8, 8),), copied=2**16,
    transformer=WAN_1_3B | dict(num_attention_heads=2, attention_head_dim=12, text_dim=16,
                                freq_dim=16, ffn_dim=32, num_layers=1),
    transformer_dtype=torch.float32, latents=(4, 4, 4), cards=(4,),
)  # fmt: skip
SCALES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True)
class Machine:
    """The device under test, and the scale of its work."""

    device: torch.device
    scale: Scale = FULL

    @property
    def name(self) -> str:
        """What the device calls itself."""
        is_cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if is_cuda else str(self.device)

    def synchronise(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int | None = None) -> float:
        """Seconds of a call that has been warmed up, the best of the repeats."""
        best = float("inf")
        for _ in range(repeats or self.scale.repeats):
            self.synchronise()
            start = time.perf_counter()
            call()
            self.synchronise()
            best = min(best, time.perf_counter() - start)
        return best

    def peak_gib(self, call: Callable[[], Any]) -> float:
        """Peak memory of a call in GiB, weights included; on a CPU that of the whole process."""
        self.clear()
        forget_peak()
        call()
        self.synchronise()
        return peak_mebibytes() / 1024

    def clear(self) -> None:
        """Give back what nothing holds any more."""
        if self.device.type in ("cuda", "mps"):
            gc.collect()
            getattr(torch, self.device.type).empty_cache()


def machine_of(device: str, scale: str) -> Machine:
    """The machine by the names of its device and scale. "auto" is the first graphics card.

    Raises InputError where there is none.
    """
    name = device
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda:0" if torch.cuda.is_available() else "mps" if has_mps else None
    if name is None:
        raise InputError(
            "This machine has no graphics card that torch can use: run this on a machine with one, "
            "or try the parts slowly with --device cpu --scale tiny."
        )
    try:
        place = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {device!r} cannot be used: give cuda, mps or cpu.") from error
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return Machine(place, SCALES[scale])


@contextmanager
def random_weights(machine: Machine) -> Iterator[None]:
    """Networks that are built in the block lie on the device, and have the same weights each time.

    What is drawn elsewhere stays the same.
    """
    with torch.random.fork_rng(devices=[]), torch.device(machine.device):
        torch.manual_seed(0)
        yield


def frozen(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network in a dtype, to be run and not trained; its own `to` would print a warning."""
    return nn.Module.to(network, dtype).eval().requires_grad_(False)


def random_pipeline(machine: Machine, dtype: torch.dtype | None = None) -> VideoEditPipeline:
    """A pipeline of the scale's configurations with random weights, built on the device.

    The tokenizer and the scheduler are the miniature's. The UNet's output is flattened: a random
    network is far steeper than a trained one. dtype: None is the scale's.
    """
    scale, small = machine.scale, Path(miniature_path())
    tokenizer = CLIPTokenizer.from_pretrained(small / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = scale.text["max_position_embeddings"]
    scheduler = DDIMScheduler.from_pretrained(small / "scheduler", local_files_only=True)
    with random_weights(machine):
        unet = UNet2DConditionModel(**scale.unet)
        vae = AutoencoderKL(**scale.vae)
        text = CLIPTextModel(CLIPTextConfig(**scale.text))
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.2)
    for network in (vae, text, unet):
        frozen(network, dtype or scale.dtype)
    pipe = VideoEditPipeline(vae, text, tokenizer, unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(machine.device)


def attempted(row: dict, measure: Callable[[], dict], machine: Machine) -> dict:
    """The row with what was measured, or with the error: one failure loses no other row."""
    try:
        return row | measure()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        first = next(iter(str(error).strip().splitlines()), "")
        return row | {"error": f"{type(error).__name__}: {first[:200]}"}
    finally:
        machine.clear()
