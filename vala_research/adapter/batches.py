"""Batches by number: batch n is the same in every run and process, its clips and its noise."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vala_research import InputError
from vala_research.adapter.loss import Batch, LossSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.codec import check_size
from vala_research.diffusion.controlnet import check_factor
from vala_research.diffusion.records import record_of, refuse_transformer, text_width
from vala_research.diffusion.vae import n_latent_frames


@dataclass(frozen=True)
class TrainingControl:
    """A frozen ControlNet, and the function that makes its condition from frames, in [0, 1]."""

    controlnet: ControlNetModel
    condition: Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, "f 3 h w"]]


Vision = Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, "f m d"]]


@dataclass(frozen=True)
class Encoders:
    """Turns samples {"frames": f 3 h w, "caption": str} into a `Batch`. Nothing here is trained.

    A sample may bring its "noise", f c h w like its latents.
    pipe: has `encode` and `encode_prompt`, as VideoEditPipeline.
    vision: gives hidden states of an image encoder, for an adapter with frame tokens.
    """

    pipe: Any
    vision: Vision | None = None
    control: TrainingControl | None = None

    @torch.no_grad()
    def batch(self, samples: list[dict], keeps_caption: list[bool]) -> Batch:
        """The batch of these samples; the others than keeps_caption get an empty caption."""
        frames = [s["frames"].to(self.pipe.device) for s in samples]
        if len({f.shape for f in frames}) > 1:
            raise InputError(
                f"The clips {', '.join(str(s.get('name')) for s in samples)} of one batch differ "
                "in size or length: give the data set one size."
            )
        captions = [s["caption"] * k for s, k in zip(samples, keeps_caption, strict=True)]
        z_0 = torch.stack([self.pipe.encode(f) for f in frames])
        vision = torch.stack([self.vision(f) for f in frames]) if self.vision else None
        c = torch.stack([self.control.condition(f) for f in frames]) if self.control else None
        noise = (
            torch.stack([s["noise"] for s in samples]).to(z_0) if "noise" in samples[0] else None
        )
        if noise is not None and noise.shape != z_0.shape:
            raise InputError(
                f"The samples' noise has shape {tuple(noise.shape[1:])} and their latents "
                f"{tuple(z_0.shape[1:])}: give noise of the latents' shape."
            )
        return Batch(z_0, self.pipe.encode_prompt(captions), vision, c, noise)


def generator_of(seed: int, number: int) -> torch.Generator:
    """The generator of batch `number` of a training, the same in every process and run."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def numbered_batches(
    dataset: Any, numbers: range, batch_size: int, n_workers: int = 0
) -> Iterator[tuple[int, list[dict]]]:
    """Yield (number, samples) of the batches with these numbers.

    A data set with numbers is indexed modulo its length. A stream is read from its start, and the
    batches before the first number are skipped. Several workers read a stream only if they share
    it in blocks of a batch (`block`, as `ShardGroups`); else they would make other batches.
    """
    own = torch.Generator()  # the loader would draw from the global one
    is_stream = isinstance(dataset, IterableDataset)
    is_shared = not is_stream or hasattr(dataset, "block")
    n_workers = n_workers if is_shared else min(n_workers, 1)
    loading = dict(collate_fn=list, num_workers=n_workers, generator=own)
    if not is_stream:
        length = len(dataset)
        chosen = ([(k * batch_size + j) % length for j in range(batch_size)] for k in numbers)
        yield from zip(numbers, DataLoader(dataset, batch_sampler=chosen, **loading), strict=True)
        return
    if is_shared:
        dataset.block = batch_size
    stream = DataLoader(dataset, batch_size=batch_size, drop_last=True, **loading)
    yield from zip(numbers, islice(stream, numbers.start, None, numbers.step), strict=False)
    raise InputError("The stream of samples ended before the training: let it repeat its clips.")


def check_video(settings: LossSettings, encoders: "Encoders") -> None:
    """Refuse what a video transformer cannot be trained with. Raises InputError."""
    network = encoders.pipe.unet
    if encoders.control is not None:
        refuse_transformer(network, "A ControlNet")
    if settings.variant == "released" or settings.attention == "own":
        raise InputError(
            f"All frames meet in a {type(network).__name__}, at one timestep: train with the loss "
            "over triples, and with attention='extended'."
        )


def check_training(
    adapter: TemporalAdapter, encoders: Encoders, dataset: Any, settings: LossSettings
) -> None:
    """Check that everything fits together, on the first sample. Raises InputError."""
    # The adapter can be trained.
    pipe = encoders.pipe
    if adapter.unet is not pipe.unet:
        raise InputError("The adapter belongs to another UNet: attach it to the pipeline's.")
    if not any(p.requires_grad for p in adapter.trainable()):
        raise InputError("The adapter is frozen: load it with is_trainable=True.")

    # The samples are long and large enough.
    first = next(iter(dataset), None) if not hasattr(dataset, "__len__") or len(dataset) else None
    if first is None:
        raise InputError("The data set is empty: give at least one clip.")
    frames, least = first["frames"], settings.n_frames
    n_seen = n_latent_frames(pipe.vae, len(frames))
    if n_seen < least:
        latent = f", which are {n_seen} of latents" if n_seen != len(frames) else ""
        raise InputError(
            f"The samples have {len(frames)} frames{latent}: the {settings.variant} temporal loss "
            f"needs at least {least}, so draw longer groups."
        )
    if record_of(pipe.unet).joins_frames:
        check_video(settings, encoders)
    check_size(frames, pipe.vae)

    # Text encoder, image encoder and ControlNet are those of this model.
    d_unet, d_text = text_width(pipe.unet), pipe.text_encoder.config.hidden_size
    if d_text != d_unet:
        raise InputError(
            f"The text encoder's tokens are {d_text} wide and the UNet reads {d_unet}: give the "
            "text encoder that the UNet was trained with."
        )
    if adapter.settings.uses_frame_tokens and encoders.vision is None:
        raise InputError("The adapter has frame tokens: give an image encoder (`vision`).")
    if encoders.control is not None:
        check_factor(encoders.control.controlnet, pipe.vae)
    with torch.no_grad():
        batch = encoders.batch([first], [True])
        adapter.condition(batch.text, None if batch.vision is None else batch.vision[0])
