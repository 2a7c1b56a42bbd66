"""Do adjacent frames agree, and do words find their object: a layer's numbers, without and with.

Numbers for what GE-Adapter (arXiv 2501.04606) Figs. 8 and 10 and its theory (arXiv 2504.16016)
Fig. 3 show as pictures.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.evaluation.cases import Case
from vala_research.evaluation.probes import (
    View,
    attention_maps,
    decoder_layers,
    feature_maps,
    short_name,
    word_positions,
)
from vala_research.methods.temporal import frame_similarity


def localisation(
    maps: Float[Tensor, "f h w"], mask: Float[Tensor, "f 1 y x"]
) -> tuple[float, float]:
    """(share of the map's mass that falls on the mask, the mask's share of the picture).

    Means over the frames that show any of the mask; a map that is even has both alike. Raises
    InputError when no frame does.
    """
    inside = F.adaptive_avg_pool2d(mask.to(maps), maps.shape[-2:])[:, 0]
    is_shown = inside.sum((1, 2)) > 0
    if not is_shown.any():
        raise InputError("The mask is empty in every frame: choose a clip that shows the object.")
    maps, inside = maps[is_shown], inside[is_shown]
    shares = (maps * inside).sum((1, 2)) / maps.sum((1, 2))
    return float(shares.mean()), float(inside.mean())


def layer_rows(
    view: View, positions: Sequence[int], mask: Float[Tensor, "f 1 y x"] | None = None
) -> list[dict]:
    """One row a decoder layer, of the clip at one timestep.

    cross, self, map: mean cosine of adjacent frames' cross-attention features, self-attention
    features and word maps; larger is steadier. on_object, area: `localisation` of the word's map.
    mirrored: of the same map on the mask turned by half a turn, which is as far from the middle:
    the score of a habit of looking there. to_adapter: attention that the adapter's tokens draw.
    """
    layers = decoder_layers(view.unet)
    features = feature_maps(view, [*layers, *layers.values()])
    maps = attention_maps(view, list(layers), [positions, range(len(view.text))])
    rows = []
    for layer, own_layer in layers.items():
        words, prompt = maps[layer][:, 0], maps[layer][:, 1]
        pairs = {"cross": features[layer], "self": features[own_layer], "map": words}
        row = {"t": view.t, "layer": short_name(layer)}
        row |= {name: float(frame_similarity(x).mean()) for name, x in pairs.items()}
        row["to_adapter"] = float(1 - prompt.mean())
        if mask is not None:
            row["on_object"], row["area"] = localisation(words, mask)
            row["mirrored"], _ = localisation(words, mask.flip(2, 3))
        rows.append(row)
    return rows


def alignment_rows(
    pipe: Any,
    cases: Iterable[Case],
    timesteps: Iterable[int],
    noise: str = "own",
) -> list[dict]:
    """`layer_rows` of every case and timestep, without and (if there is one) with the adapter."""
    rows, timesteps = [], list(timesteps)
    for i, case in enumerate(tqdm(list(cases), "clips", disable=None)):
        positions = word_positions(pipe.tokenizer, case.prompt, case.words)
        for t in timesteps:
            for name, view in case.views(pipe, t, noise).items():
                first = {"clip": i, "adapter": name}
                rows += [first | row for row in layer_rows(view, positions, case.mask)]
    return rows
