"""Show a network a noised clip, and read its attention and its features, frame by frame.

Score matrices exist here only: for one frame of one layer at a time, until they are summed up.
GE-Adapter (arXiv 2501.04606) Figs. 8 and 10; its theory (arXiv 2504.16016) Fig. 3.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.adapter.temporal_adapter import TemporalAdapter, hook_sites
from vala_research.diffusion.backbone import Backbone, UNet
from vala_research.diffusion.patching import Patch
from vala_research.diffusion.word_maps import places_of

NOISES = ("shared", "own")
Summary = Callable[[Attention, Tensor, Tensor, Tensor], Tensor]  # (layer, x, context, output)


@dataclass(frozen=True)
class View:
    """A network and its input: a noised clip, the timestep, the prompt, an adapter on or off.

    z: latents at timestep t. text: tokens of the prompt alone. adapter: the one whose LoRA the UNet
    holds. scale: strength of the LoRA. vision: image tokens of the clean frames, for the adapter's
    frame tokens. is_adapted: if False, neither LoRA nor tokens of the adapter act.
    """

    unet: UNet
    z: Float[Tensor, "f c h w"]
    t: int
    text: Float[Tensor, "n d"]
    adapter: TemporalAdapter | None = None
    vision: Float[Tensor, "f m d_vision"] | None = None
    scale: float = 1.0
    is_adapted: bool = True

    @property
    def rows(self) -> Float[Tensor, "1 rows l d"]:
        """The tokens of every frame, or one row that they share; the adapter's come first."""
        if self.adapter is None or not self.is_adapted:
            return self.text[None, None]
        return self.adapter.condition(self.text[None], self.vision)

    @property
    def n_adapter_tokens(self) -> int:
        return self.rows.shape[2] - len(self.text)

    @torch.no_grad()
    def predict(self, *patches: Patch) -> Float[Tensor, "f c h w"]:
        """The network's prediction."""
        switch = self.adapter and self.adapter.active(self.is_adapted, self.scale)
        with switch or nullcontext():
            return Backbone(self.unet)(self.z[None], self.t, self.rows, patches)[0]


def views_of(
    pipe: Any,
    frames: Float[Tensor, "f 3 y x"],
    prompt: str,
    t: int,
    generator: torch.Generator,
    noise: str = "own",
    scale: float | None = None,
) -> dict[str, View]:
    """The clip noised to timestep t, "without" the pipeline's adapter and, if it has one, "with".

    z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps. noise: "own" draws eps for each frame,
    as in training; "shared" draws one for all, so that at high t all frames look alike. scale: of
    the LoRA; None is the adapter's own.
    """
    chosen_from("noise", noise, NOISES)
    alpha_bar = pipe.scheduler.alphas_cumprod.cpu().double()
    if not 0 <= t < len(alpha_bar):
        raise InputError(f"The timestep is {t}: choose one from 0 to {len(alpha_bar) - 1}.")

    # The clip at timestep t.
    z_0, a = pipe.encode(frames), float(alpha_bar[t])
    shape = (len(z_0) if noise == "own" else 1, *z_0.shape[1:])
    eps = torch.randn(shape, generator=generator, device=generator.device, dtype=z_0.dtype)
    z_t = sqrt(a) * z_0 + sqrt(1 - a) * eps.to(z_0.device)
    with torch.no_grad():
        (text,) = pipe.encode_prompt([prompt])

    # Both views share the noise.
    adapter = pipe.adapter
    view = View(pipe.unet, z_t, t, text, adapter, is_adapted=False)
    if adapter is None:
        return {"without": view}
    has_pictures = adapter.settings.uses_frame_tokens
    vision = pipe.vision_encoder.tokens(frames, z_0.device) if has_pictures else None
    strength = adapter.settings.scale if scale is None else scale
    adapted = replace(view, vision=vision, scale=strength, is_adapted=True)
    return {"without": view, "with": adapted}


# Where to look.


def decoder_layers(unet: UNet) -> dict[str, str]:
    """Cross-attention -> self-attention, in the decoder's blocks but the first.

    In Stable Diffusion these are blocks 4 to 11 of Fig. 3, which counts 12 blocks from 0. The
    temporal loss reads the same layers.
    """
    present = {n for n, m in unet.named_modules() if isinstance(m, Attention)}
    pairs = {f"{n.removesuffix('attn1')}attn2": n for n in hook_sites(unet)}
    return {cross: own for cross, own in pairs.items() if cross in present}


def third_upsampling_block(unet: UNet) -> dict[str, str]:
    """`decoder_layers` of up_blocks[2], or of the last block before it that has attention."""
    layers = decoder_layers(unet)
    numbers = {int(name.split(".")[1]) for name in layers}
    block = max((n for n in numbers if n <= 2), default=min(numbers))
    return {c: own for c, own in layers.items() if c.startswith(f"up_blocks.{block}.")}


def word_positions(tokenizer: Any, prompt: str, words: str) -> list[int]:
    """Positions of words in the prompt's tokens: all pieces of a word, and all repetitions.

    words: one word, or several in a row. Raises InputError when they are not in the part of the
    prompt that the model reads.
    """
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    places = places_of(tokenizer(words, add_special_tokens=False).input_ids, ids)
    if not places:
        raise InputError(
            f"{words!r} is not in what the model reads of the prompt {prompt!r}: choose words from "
            "it, in the same spelling."
        )
    return places


# Maps and features.


def attention_maps(
    view: View, layers: Sequence[str], tokens: Sequence[Sequence[int]] | None = None
) -> dict[str, Float[Tensor, "f k h w"]]:
    """Cross-attention: how much each site attends to each group of tokens, mean over heads.

    softmax(q k' / sqrt(d)), summed over a group. tokens: groups of positions in the prompt, such as
    `word_positions`. None: every token by itself, the adapter's first; the maps then sum to 1.
    """
    n_before, n = view.n_adapter_tokens, len(view.text)
    if any(not 0 <= i < n for group in tokens or [] for i in group):
        raise InputError(f"Token positions {tokens} in a prompt of {n} tokens: choose others.")
    groups = [[i] for i in range(n_before + n)]
    if tokens is not None:
        groups = [[n_before + i for i in group] for group in tokens]

    def summary(attn: Attention, x: Tensor, context: Tensor, _out: Tensor) -> Tensor:
        maps = [probabilities(attn, *frame) for frame in zip(x, context, strict=True)]  # n m
        sums = [torch.stack([p[:, g].sum(-1) for g in groups]) for p in maps]
        return _on_grid(torch.stack(sums), view.z)

    return _read(view, layers, summary)


def self_attention_maps(
    view: View, layers: Sequence[str], queries: Float[Tensor, "f 1 y x"] | None = None
) -> dict[str, Float[Tensor, "f 1 h w"]]:
    """Self-attention: what each site receives from the queries, mean over heads; sums to 1.

    queries: weights of the querying sites, such as an object's mask. None: equal weights.
    """

    def summary(attn: Attention, x: Tensor, _context: Tensor, _out: Tensor) -> Tensor:
        weights = x.new_ones(x.shape[:2])
        if queries is not None:
            weights = F.adaptive_avg_pool2d(queries.to(x), grid_of(x.shape[1], view.z)).flatten(1)
        maps = [(w / w.sum()) @ probabilities(attn, y, y) for y, w in zip(x, weights, strict=True)]
        return _on_grid(torch.stack(maps)[:, None], view.z)

    return _read(view, layers, summary)


def feature_maps(view: View, layers: Sequence[str], *patches: Patch) -> dict[str, Tensor]:
    """Outputs of attention layers, f d h w, before the residual is added. patches: more of them."""
    return _read(view, layers, lambda _a, _x, _c, out: _on_grid(out.mT, view.z), *patches)


def probabilities(
    attn: Attention, x: Float[Tensor, "n c"], context: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    """softmax(q k' / sqrt(d)) of one frame, mean over heads; at least float32."""
    q, k = (
        rearrange(y, "n (head d) -> head n d", head=attn.heads)
        for y in (attn.to_q(x), attn.to_k(context))
    )
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    return (scores / sqrt(q.shape[-1])).softmax(-1).mean(0)


def grid_of(n_sites: int, z: Float[Tensor, "f c h w"]) -> tuple[int, int]:
    """Height and width of a layer: the latents' own, halved (rounded up) until n_sites are left."""
    h, w = z.shape[-2:]
    while h * w > n_sites:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != n_sites:
        raise InputError(
            f"A layer of {n_sites} sites is no halving of latents of {tuple(z.shape[-2:])}."
        )
    return h, w


def _read(view: View, layers: Sequence[str], summary: Summary, *patches: Patch) -> dict:
    """A summary per layer. Frames are in order, in whatever chunks the network sees them."""
    known = [n for n, m in view.unet.named_modules() if isinstance(m, Attention)]
    if not layers or set(layers) - set(known):
        raise InputError(f"Attention layers {list(layers)}: choose from {', '.join(known)}.")
    summaries: dict[str, list[Tensor]] = {name: [] for name in layers}

    # The layer computes as always; its inputs and output are summed up on the way.
    def keep(name: str, attn: Attention, forward: Callable) -> Callable:
        def kept(hidden_states, encoder_hidden_states=None, *args, **kwargs) -> Tensor:
            out = forward(hidden_states, encoder_hidden_states, *args, **kwargs)
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            summaries[name].append(summary(attn, hidden_states, context, out).to(view.z.dtype))
            return out

        return kept

    view.predict(*patches, Patch(lambda name, _: name in summaries, forward=keep))
    return {name: torch.cat(parts) for name, parts in summaries.items()}


def _on_grid(x: Float[Tensor, "f d n"], z: Tensor) -> Float[Tensor, "f d h w"]:
    return x.unflatten(-1, grid_of(x.shape[-1], z))


def short_name(layer: str) -> str:
    """up_blocks.2.attentions.1.transformer_blocks.0.attn2 -> up 2.1"""
    _, block, _, attention, _, depth, *_ = layer.split(".")
    return f"up {block}.{attention}" + (f".{depth}" if depth != "0" else "")
