"""Heads, queries and tokens of real cross-attention layers, each beside an ideal one.

Bounds of GE-Adapter (arXiv 2501.04606), C.10 to C.14, are tried on them. The bounds speak
of one head; a layer's output is a linear map of its heads side by side.
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
from vala_research.diffusion.patching import Patch, is_temporal
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.probes import View, views_of

Matrices = tuple[Tensor, Tensor, Tensor]  # W_Q c d, W_K e d, W_V e d of one head
Judge = Callable[..., dict[str, Any]]  # (W_Q, W_K, W_V, X, X*, Z, Z*) -> columns of a row


def cross_layers(unet: UNet) -> list[str]:
    """Names of a UNet's spatial cross-attention layers, in its own order."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2") and not is_temporal(name)
    ]


def heads(attn: Attention) -> list[Matrices]:
    """Split a layer into its heads: their projections, float64.

    The output of a head is softmax(X W_Q W_K' Z' / sqrt(d)) Z W_V. Raises InputError for a layer
    that is more than that: with biases, normalised queries or a scale of its own.
    """
    projections = (attn.to_q, attn.to_k, attn.to_v)
    d = attn.to_q.weight.shape[0] // attn.heads
    is_plain = attn.norm_q is None and attn.norm_k is None and isclose(attn.scale, d**-0.5)
    if not is_plain or any(p.bias is not None for p in projections):
        raise InputError(
            "This attention layer has biases, normalised queries or its own scale, which the "
            "bounds do not know: choose a layer without."
        )
    split = [p.weight.detach().cpu().double().T.chunk(attn.heads, 1) for p in projections]
    return list(zip(*split, strict=True))


def layer_queries(view: View, layers: Iterable[str]) -> dict[str, Float[Tensor, "f n c"]]:
    """Record X_t, the input of each cross-attention layer before its projections, float64."""
    queries: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, _attn: Attention, forward: Callable) -> Callable:
        def kept(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            queries[name].append(hidden_states.detach().cpu().double())
            return forward(hidden_states, *args, **kwargs)

        return kept

    view.predict(Patch(lambda name, _: name in queries, forward=keep))
    return {name: torch.cat(parts) for name, parts in queries.items()}


@dataclass(frozen=True)
class Pair:
    """Input of a layer at a clip's first frame, and an ideal beside it.

    kind: "words": the ideal tokens are those of the edited prompt, and the queries are the same, as
        in the paper's lemma; "edit": queries and tokens of the edited prompt's own run; "frame":
        queries of the next frame; "step": queries of another timestep.
    share: in the last two kinds the tokens have come nearer to the ideal ones, Z = Z* + share
        (Z_source - Z*); at share 0 they are alike.
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
    """Yield the pairs of a clip in every layer. times: the timestep, and that of "step"."""
    frames, layers = case.material(2, size).frames, cross_layers(pipe.unet)
    here, later = (
        views_of(pipe, frames, case.source_prompt, t, torch.Generator().manual_seed(seed))
        for t in times
    )
    with torch.no_grad():
        (words,) = pipe.encode_prompt([case.prompt])
    runs = (here["without"], replace(here["without"], text=words), later["without"])
    now, edit, then = (layer_queries(view, layers) for view in runs)
    z, z_edit = here["without"].text.cpu().double(), words.cpu().double()
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
    """Judge every head: one row per clip, timestep, pair, layer and head.

    step: how far back the timestep of a pair "step" lies. shares: of `Pair`.
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
                    verdict = judge(*matrices, p.x, p.x_ideal, p.z, p.z_ideal)
                    rows.append(place | {"head": h} | verdict)
    return rows


def short_layer(name: str) -> str:
    """Abbreviate: down_blocks.1.attentions.0.transformer_blocks.0.attn2 -> down 1.0."""
    place, _, rest = name.partition("_block")
    numbers = [part for part in rest.split(".") if part.isdigit()]
    return f"{place} {'.'.join(numbers[:-1])}" + (f".{numbers[-1]}" if numbers[-1] != "0" else "")
