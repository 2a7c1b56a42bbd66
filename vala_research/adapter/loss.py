"""The training loss of the temporal adapter: Eq. (19), GE-Adapter (arXiv 2501.04606) 3.4.

Below 0.5 T the LoRA is off and only the diffusion loss counts: it trains the prompt tokens alone.
From 0.5 T on the LoRA is on and both losses count.

    L = lambda_diffusion |eps - eps_theta|^2 + 1[t >= 0.5 T] lambda_temporal L_temporal
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vala_research import InputError, chosen_from, number_in
from vala_research.adapter.temporal_adapter import TemporalAdapter, temporal_features
from vala_research.diffusion.attention import POLICIES
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import patched
from vala_research.diffusion.pooled_text import conditions
from vala_research.diffusion.records import first_layer, is_transformer, record_of
from vala_research.diffusion.solvers import is_flow, n_timesteps_of
from vala_research.methods.temporal import VARIANTS, frame_similarity, temporal_consistency_loss

WEIGHTINGS = ("target", "velocity")


@dataclass(frozen=True)
class LossSettings:
    """Weights and variants of the training loss.

    lambda_diffusion, lambda_temporal: weights of the two losses (released code: 1 and 0.01).
    temporal_from: fraction of T from which the LoRA is on and the temporal loss counts.
    variant: "triples" takes all frames of a sample at one timestep t; "released" takes the first
        two at t and again at t + 1, with independent noise.
    attention: the policy by which frames attend to each other.
    caption_dropout: share of samples trained with an empty caption, for guidance.
    weighting: of the diffusion loss over timesteps. "target" is the error of the network's output,
        alike at all timesteps; "velocity" is the error of v (Salimans and Ho 2022), which keeps
        the weight of noisy timesteps.
    flicker_weight: as in `temporal_consistency_loss`, for triples; 0 is the paper's loss.

    Differs from paper: Eq. (19) weighs the diffusion loss by 1, the text after Eq. (20) by 0.01.
    """

    lambda_diffusion: float = 0.01
    lambda_temporal: float = 1.0
    temporal_from: float = 0.5
    variant: str = "triples"
    attention: str = "own"
    caption_dropout: float = 0.0
    weighting: str = "target"
    flicker_weight: float = 0.0

    def __post_init__(self):
        chosen_from("variant", self.variant, VARIANTS)
        if self.attention not in POLICIES:
            raise InputError(
                f"Training under attention {self.attention!r} is not possible: choose one of "
                f"{', '.join(POLICIES)}."
            )
        chosen_from("weighting", self.weighting, WEIGHTINGS)
        for name in ("lambda_diffusion", "lambda_temporal", "flicker_weight"):
            sentence = f"A weight of the loss must not be negative or infinite, and {name}"
            number_in(sentence, getattr(self, name), 0, 1e6)
        if self.variant == "released" and self.flicker_weight:
            raise InputError(
                "flicker_weight mends the loss over triples only: leave it out, or train triples."
            )
        for name in ("temporal_from", "caption_dropout"):
            number_in(name, getattr(self, name), 0, 1)

    @property
    def n_frames(self) -> int:
        """The least number of frames per sample."""
        return 3 if self.variant == "triples" else 2


@dataclass(frozen=True)
class Batch:
    """A batch of clips as the networks see them.

    vision: image tokens per frame. condition: pictures for a ControlNet, in [0, 1].
    noise: replaces drawn noise, such as the noise of an inversion.
    """

    z_0: Float[Tensor, "g f c h w"]
    text: Float[Tensor, "g n d"]
    vision: Float[Tensor, "g f m d_vision"] | None = None
    condition: Float[Tensor, "g f 3 y x"] | None = None
    noise: Float[Tensor, "g f c h w"] | None = None

    def frames(self, index: list[int]) -> "Batch":
        """The batch with these frames of every clip."""
        others = self.vision, self.condition, self.noise
        parts = [None if x is None else x[:, index] for x in others]
        return Batch(self.z_0[:, index], self.text, *parts)


@dataclass(frozen=True)
class Noising:
    """What is drawn for a batch: timesteps, noise, and their side of `temporal_from`.

    All clips of a batch are on one side, since the LoRA is on or off for all of them.
    """

    t: Int[Tensor, "g f"]
    eps: Float[Tensor, "g f c h w"]
    is_temporal: bool


def draw_noising(
    shape: tuple[int, ...], n_timesteps: int, settings: LossSettings, generator: torch.Generator,
    always_temporal: bool = False,
) -> Noising:  # fmt: skip
    """Draw timesteps uniform over 0..T-1, one per clip, and independent noise per frame.

    shape: of the noise, g f c h w. A released sample has frames i, j at t and i, j at t + 1.
    always_temporal: only timesteps with the LoRA on, for an adapter without tokens.
    """
    border = min(round(settings.temporal_from * n_timesteps), n_timesteps - 1)
    side = torch.rand((), generator=generator).item() * n_timesteps >= border
    is_temporal = always_temporal or side
    low, high = (border, n_timesteps) if is_temporal else (0, border)
    t = torch.randint(low, high, (shape[0], 1), generator=generator).expand(shape[:2])
    if settings.variant == "released":
        t = (t + torch.tensor([0, 0, 1, 1])).clamp_max(n_timesteps - 1)
    return Noising(t, torch.randn(shape, generator=generator), is_temporal)


def adapter_loss(
    adapter: TemporalAdapter, scheduler: Any, batch: Batch, noising: Noising,
    settings: LossSettings, controlnet: ControlNetModel | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss of a batch, and its parts.

    Returns "loss" (to be minimised) and "diffusion"; with the LoRA on also "temporal" and
    "similarity", the mean cosine of neighbouring frames' features. Both are means over clips and
    hook sites. The temporal loss alone cannot tell steady frames from steady flicker.
    """
    # Noise the clips.
    z_0, device = batch.z_0, batch.z_0.device
    t = noising.t.to(device)
    eps = (noising.eps if batch.noise is None else batch.noise).to(z_0)
    if is_flow(scheduler):
        kind, a = "flow_prediction", None
        z_t = torch.lerp(z_0, eps, t[..., None, None, None] / n_timesteps_of(scheduler))
    else:
        kind = scheduler.config.get("prediction_type", "epsilon")
        a = scheduler.alphas_cumprod.to(device, torch.float32)[t][..., None, None, None]
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * eps

    # Predict under the adapter, keeping the features that the temporal loss reads.
    rows = _rows(adapter, batch)
    n_clips, n_frames = z_0.shape[:2]
    patches = attention_patches(
        adapter.unet, settings.attention, n_clips, n_frames, size=tuple(z_0.shape[-2:])
    )
    with (
        adapter.active(noising.is_temporal),
        patched(adapter.unet, *patches),
        temporal_features(adapter.unet) as features,
    ):
        prediction = _predict(adapter.unet, z_t, t, rows, batch.condition, controlnet)

    error = (prediction - target_of(kind, z_0, eps, a)).square()
    if settings.weighting == "velocity" and a is not None:  # a flow predicts the velocity
        error = error * _velocity_weight(kind, a)
    diffusion = error.mean()
    losses = {"loss": settings.lambda_diffusion * diffusion, "diffusion": diffusion}
    if noising.is_temporal:
        by_frame = [x.reshape(n_clips * n_frames, -1, x.shape[-1]) for x in features.values()]
        parts = [_temporal(x, n_clips, settings) for x in by_frame]
        temporal, similarity = (torch.stack(x).mean() for x in zip(*parts, strict=True))
        losses["loss"] = losses["loss"] + settings.lambda_temporal * temporal
        losses |= {"temporal": temporal, "similarity": similarity}
    return losses


def _rows(adapter: TemporalAdapter, batch: Batch) -> Float[Tensor, "b l d"]:
    """One sequence of tokens per frame of every clip."""
    n_frames, rows = batch.z_0.shape[1], []
    for i, text in enumerate(batch.text):
        vision = None if batch.vision is None else batch.vision[i]
        rows.append(adapter.condition(text[None], vision)[0].expand(n_frames, -1, -1))
    return torch.cat(rows)


def _predict(unet, z_t, t, rows, condition, controlnet) -> Float[Tensor, "g f c h w"]:
    n_frames, dtype = z_t.shape[1], first_layer(unet).weight.dtype
    if is_transformer(unet):
        words = rows.unflatten(0, (-1, n_frames))[:, :1].to(dtype)
        given = z_t.to(dtype), t[:, 0], words, (8 * z_t.shape[-2], 8 * z_t.shape[-1], 1), {}
        return record_of(unet).call(unet, *given).float()
    z, rows, times = z_t.flatten(0, 1).to(dtype), rows.to(dtype), t.flatten()
    size, added = (8 * z.shape[2], 8 * z.shape[3]), {}
    if controlnet is not None:
        picture, words = condition.flatten(0, 1).to(dtype), conditions(controlnet, rows, size)
        down, mid = controlnet(z, times, controlnet_cond=picture, return_dict=False, **words)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    out = unet(z, times, return_dict=False, **conditions(unet, rows, size), **added)[0]
    return out.float().unflatten(0, (-1, n_frames))


def target_of(kind: str, z_0: Tensor, eps: Tensor, a: Tensor | None) -> Tensor:
    """The right output of a network of this prediction type; a = alpha_bar_t."""
    if kind == "flow_prediction":
        return eps - z_0
    if kind == "v_prediction":
        return a.sqrt() * eps - (1 - a).sqrt() * z_0
    return z_0 if kind == "sample" else eps


def _velocity_weight(kind: str, a: Tensor) -> Tensor:
    """Factor from the squared error of the network's target to that of v; at most 100."""
    if kind == "v_prediction":
        return torch.ones_like(a)
    return 1 / (1 - a if kind == "sample" else a).clamp_min(0.01)


def _temporal(x: Tensor, n_clips: int, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """(loss, mean similarity) of one site's features, (g f) n d."""
    clips, is_released = x.unflatten(0, (n_clips, -1)), settings.variant == "released"
    similar = torch.stack([frame_similarity(c[:2] if is_released else c) for c in clips])
    if is_released:
        loss = temporal_consistency_loss(rearrange(clips, "g f n d -> (f g) n d"), "released")
    else:
        mended = dict(flicker_weight=settings.flicker_weight)
        loss = torch.stack([temporal_consistency_loss(c, **mended) for c in clips]).mean()
    return loss, similar.mean()
