"""What real cross-attention layers are given: heads, queries, tokens, beside others of each.

The material on which bounds of GE-Adapter's theory (arXiv 2504.16016, C.10 to C.14) are tried.
Those speak of one head; a layer's output is a linear map of its heads side by side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.patching import Patch
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.probes import View, views_of

Matrices = tuple[Tensor, Tensor, Tensor]  # W_Q c d, W_K e d, W_V e d of one head
Judge = Callable[..., dict[str, Any]]  # (W_Q, W_K, W_V, X, X*, Z, Z*) -> what it says of them


def cross_layers(unet: UNet) -> list[str]:
    """All of a UNet's spatial cross-attention layers, in the order in which it has them."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2")
        and "motion_modules" not in name
    ]  # fmt: skip


def heads(attn: Attention) -> list[Matrices]:
    """Each head's projections, float64: softmax(X W_Q W_K' Z' / sqrt(d)) Z W_V is what it makes.

    Raises InputError for a layer that is more than that: biases, normalised queries, other scales.
    """
    projections = (attn.to_q, attn.to_k, attn.to_v)
    d = attn.to_q.weight.shape[0] // attn.heads
    is_plain = attn.norm_q is None and attn.norm_k is None and isclose(attn.scale, d**-0.5)
    if not is_plain or any(p.bias is not None for p in projections):
        raise InputError(
            "This attention layer has biases, normalised queries or its own scale, which the "
            "bounds do not know: choose a layer without."
        )
    split = [p.weight.detach().double().T.chunk(attn.heads, 1) for p in projections]
    return list(zip(*split, strict=True))


def layer_queries(view: View, layers: Iterable[str]) -> dict[str, Float[Tensor, "f n c"]]:
    """X_t: what comes into each cross-attention layer, before its projections, float64."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, _attn: Attention, forward: Callable) -> Callable:
        def kept(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found[name].append(hidden_states.detach().double())
            return forward(hidden_states, *args, **kwargs)

        return kept

    view.predict(Patch(lambda name, _: name in found, forward=keep))
    return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass(frozen=True)
class Pair:
    """What a layer is given at a clip's first frame, and an ideal beside it.

    kind: "words": ideal tokens are those of the edited prompt, queries the same, as the paper's
    lemma has it; "edit": queries and tokens of the edited prompt's own run; "frame": queries of the
    next frame; "step": queries of another timestep. In the last two the tokens have come nearer to
    the ideal ones: Z = Z* + share (Z_source - Z*); share 0: they are alike.
    """

    kind: str
    layer: str
    share: float
    x: Float[Tensor, "m c"]
    x_ideal: Float[Tensor, "m c"]
    z: Float[Tensor, "n e"]
    z_ideal: Float[Tensor, "n e"]


def pairs(
    pipe: Any, case: EditCase | ClipCase, times: tuple[int, int], shares: Sequence[float],
    size: int, seed: int = 0,
) -> Iterator[Pair]:  # fmt: skip
    """The pairs of a clip in every layer. times: the timestep, and the other one of "step"."""
    frames, layers = case.material(2, size).frames, cross_layers(pipe.unet)
    here, later = (
        views_of(pipe, frames, case.source_prompt, t, torch.Generator().manual_seed(seed))
        for t in times
    )
    with torch.no_grad():
        (words,) = pipe.encode_prompt([case.prompt])
    runs = (here["without"], replace(here["without"], text=words), later["without"])
    now, edit, then = (layer_queries(view, layers) for view in runs)
    z, z_edit = here["without"].text.double(), words.double()
    for name in layers:
        x = now[name][0]
        yield Pair("words", name, 1.0, x, x, z, z_edit)
        yield Pair("edit", name, 1.0, x, edit[name][0], z, z_edit)
        for share in shares:
            nearer = z_edit + share * (z - z_edit)
            yield Pair("frame", name, share, x, now[name][1], nearer, z_edit)
            yield Pair("step", name, share, x, then[name][0], nearer, z_edit)


def head_rows(
    pipe: Any, cases: Iterable[EditCase | ClipCase], timesteps: Iterable[int], judge: Judge,
    size: int, step: int = 20, shares: Sequence[float] = (1.0, 0.1, 0.01, 0.001, 0.0),
) -> list[dict]:  # fmt: skip
    """One row a clip, timestep, pair, layer and head: what `judge` says of it.

    step: how far back the other timestep of a pair lies. shares: of `Pair`.
    """
    rows, timesteps = [], list(timesteps)
    if min(timesteps, default=-1) < step:
        raise InputError(f"Timesteps {timesteps} have none {step} before them: give later ones.")
    for i, case in enumerate(tqdm(list(cases), "clips", disable=None)):
        for t in timesteps:
            for p in pairs(pipe, case, (t, t - step), shares, size, seed=i):
                place = {"clip": i, "t": t, "pair": p.kind, "share": p.share}
                place["layer"] = short_layer(p.layer)
                for h, matrices in enumerate(heads(pipe.unet.get_submodule(p.layer))):
                    said = judge(*matrices, p.x, p.x_ideal, p.z, p.z_ideal)
                    rows.append(place | {"head": h} | said)
    return rows


def short_layer(name: str) -> str:
    """down_blocks.1.attentions.0.transformer_blocks.0.attn2 -> down 1.0; the middle's: mid 0"""
    place, _, rest = name.partition("_block")
    numbers = [part for part in rest.split(".") if part.isdigit()]
    return f"{place} {'.'.join(numbers[:-1])}" + (f".{numbers[-1]}" if numbers[-1] != "0" else "")
