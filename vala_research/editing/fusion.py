"""Fusion: image and video models denoise one clip together. Each takes a step, then they are mixed.

FLDM (arXiv 2310.16400) 3.2. Each source has its own network, prompt, guidance, attention, adapter,
ControlNet, prediction type and noise schedule. All sources share one latent space. The levels of an
edit are those of source 0; every other source is called at the timestep with the nearest alpha_bar.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.diffusion.inversion import Inversion, InversionSettings
from vala_research.diffusion.noise_start import NoiseStart, noisy_again
from vala_research.editing.source import Source
from vala_research.editing.stream import Stream
from vala_research.methods.fusion import FusionSchedule, fuse

STARTS = ("inverted", "shared", "noise")


@dataclass
class Fusion:
    """Sources, of which source 0 is the video model, and the schedule of their weights.

    image_start: where all sources but the first begin. "inverted": every source inverts the clip
        itself. "shared": all begin at the inversion by source 0. "noise": at noise from the call's
        generator, as in the released code.
    normalise: `fuse` matches the moments of the sources first.

    Differs from paper: the paper inverts by the video model alone and starts the image model from
    noise.
    """

    sources: Sequence[Source]
    schedule: FusionSchedule = field(default_factory=FusionSchedule)
    image_start: str = "inverted"
    normalise: bool = False

    def __post_init__(self):
        chosen_from("image_start", self.image_start, STARTS)
        if len(self.sources) != len(self.schedule.initial):
            raise InputError(
                f"There are {len(self.sources)} sources and {len(self.schedule.initial)} fusion "
                "weights: give one weight per source."
            )

    def weights(self, n_steps: int) -> list[list[float] | None]:
        """Weights of every step (None before tau).

        All are computed now, so that a bad schedule fails before the first step.
        """
        return [self.schedule.weights(i, n_steps) for i in range(n_steps)]


def begin(
    streams: Sequence[Stream],
    fusion: Fusion | None,
    z_0: Float[Tensor, "f c h w"] | None,
    latents: Inversion | None,
    inversion: InversionSettings,
    generator: Any,
    progress: Callable[[Iterable], Iterable],
) -> None:
    """Give every stream its noisiest latent: its own if it has one, or by `image_start`.

    latents: an inversion given to the call; every stream without its own starts from it.
    Raises InputError when features are injected and a source starts from noise.
    """
    image_start = "inverted" if fusion is None else fusion.image_start
    n_injected = max(stream.n_injected for stream in streams)
    if n_injected and (image_start == "noise" or isinstance(inversion, NoiseStart)):
        raise InputError(
            "Sources that start from noise have no features of the clip to inject: set injection "
            "to 0, and image_start to 'inverted' or inversion to 'ddim'."
        )
    one = generator[0] if isinstance(generator, list) else generator

    for m, stream in enumerate(streams):
        if stream.inverted is not None:
            known = stream.inverted
        elif latents is not None:
            known = latents if m == 0 else replace(latents, null_text=None)
        elif isinstance(inversion, NoiseStart):
            known = started_from_noise(stream, inversion, z_0, one)
        elif m == 0 or image_start == "inverted":
            known = stream.invert(z_0, inversion, n_injected > 0, progress)
        elif image_start == "shared":
            known = Inversion(streams[0].inverted.latents)
        else:
            known = Inversion(randn_tensor(z_0.shape, one, z_0.device, z_0.dtype))
        stream.start(known)


def started_from_noise(
    stream: Stream, start: NoiseStart, z_0: Float[Tensor, "f c h w"], generator: Any
) -> Inversion:
    """The noisiest latents of all frames, from one noise.

    z_0: latents of their shape, device and precision.

    Differs from paper: its code samples on from the level to which it adds noise again. Here this
    is the noisiest level, as the paper writes.
    """
    noise = randn_tensor(z_0[:1].shape, generator, z_0.device, z_0.dtype)
    n_first = round(start.share * len(stream.schedule))
    if n_first == 0:
        return Inversion(start.moved(noise, len(z_0)), attention=stream.attention)

    # The first frame goes some steps ahead; its moved latents become as noisy as before.
    controls = [c.of_frames(1) for c in stream.backbone.controls]
    ahead = replace(stream, backbone=replace(stream.backbone, controls=controls), attention="own")
    ahead.start(Inversion(noise))
    steps = list(stream.schedule)[:n_first]
    for i, step in enumerate(steps):
        ahead.step(i, step)
    eps = randn_tensor(z_0.shape, generator, z_0.device, z_0.dtype)
    moved = noisy_again(
        start.moved(ahead.z, len(z_0)), eps, steps[-1].clean, steps[0].noisy
    )
    return Inversion(moved, attention=stream.attention)


def mix(streams: Sequence[Stream], weights: Sequence[float] | None, fusion: Fusion | None) -> None:
    """Replace the latent of every stream by the weighted sum of all; nothing without weights."""
    if weights is None:
        return
    z = fuse([stream.z for stream in streams], weights, fusion.normalise)
    for stream in streams:
        stream.z = z
