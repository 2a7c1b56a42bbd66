"""Measure what words and objects attend to, and how alike adjacent frames are, layer by layer.

The numbers and pictures of GE-Adapter (arXiv 2501.04606) Figs. 8 and 10, and of its theory
(arXiv 2504.16016) Fig. 3.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
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
    self_attention_maps,
    short_name,
    third_upsampling_block,
    word_positions,
)
from vala_research.methods.temporal import frame_similarity

Views = Mapping[str, View]  # "without" and "with" the adapter
FEATURE = ("layer", "channel", "adapter", "t")  # the key of one picture of features


def localisation(
    maps: Float[Tensor, "f h w"], mask: Float[Tensor, "f 1 y x"]
) -> tuple[float, float]:
    """Share of the map's mass on the mask, and share of the picture that the mask covers.

    Both are means over the frames that show some of the mask. An even map has equal shares.
    Raises InputError when no frame shows any.
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
    """One row per decoder layer, for the clip at one timestep.

    cross, self, map: mean cosine of adjacent frames' cross-attention features, self-attention
    features and word maps; larger is steadier. to_adapter: attention to the adapter's tokens.
    third_block: whether the layer lies in the third upsampling block.

    With a mask, on_object and area: `localisation` of the word's map. mirrored: on_object for the
    mask turned by half a turn, which lies as far from the middle; a map that merely prefers the
    middle scores as much.
    """
    layers, third = decoder_layers(view.unet), third_upsampling_block(view.unet)
    features = feature_maps(view, [*layers, *layers.values()])
    maps = attention_maps(view, list(layers), [positions, range(len(view.text))])
    rows = []
    for layer, own_layer in layers.items():
        words, prompt = maps[layer][:, 0], maps[layer][:, 1]
        pairs = {"cross": features[layer], "self": features[own_layer], "map": words}
        row = {"t": view.t, "layer": short_name(layer), "third_block": layer in third}
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


def map_rows(case: Case, at: Mapping[int, Views], positions: Sequence[int]) -> list[dict]:
    """One row per site of each map of the third upsampling block, in the first two frames.

    map: "words", attention to the words at these positions of the prompt; "object", attention from
    the object's true sites where they are known, else from all sites. value: times an even spread,
    so that 1 is the value of an even map; mean over the layers, which weigh alike.
    """
    maps = {}
    for t, pair in at.items():
        for name, view in pair.items():
            layers = third_upsampling_block(view.unet)
            crossed = attention_maps(view, list(layers), [positions])
            own = self_attention_maps(view, list(layers.values()), case.mask)
            for side, by_layer in (("words", crossed), ("object", own)):
                each = torch.stack([m[:2, 0].float().cpu() for m in by_layer.values()])
                maps[side, name, t] = (each / each.mean((2, 3), keepdim=True)).mean(0)
    words_first = {k: maps[k] for k in sorted(maps, key=lambda k: k[0] != "words")}
    return _site_rows(words_first, ("map", "adapter", "t"))


def feature_rows(at: Mapping[int, Views]) -> tuple[list[dict], list[dict]]:
    """(One row per site of one channel, one row per layer), in the first two frames.

    Of each decoder cross-attention's output, without and with the adapter, at each timestep. The
    channel is the one that varies most over the sites, without the adapter at the first timestep.
    cosine: of the two frames, over all channels.
    """
    layers = list(decoder_layers(next(iter(at.values()))["without"].unet))
    features = {
        (name, t): feature_maps(view, layers)
        for t, pair in at.items()
        for name, view in pair.items()
    }
    images, cosines = {}, []
    for layer in layers:
        base = features["without", next(iter(at))][layer][:2].float()
        channel = int(base.var((2, 3)).mean(0).argmax())
        for (name, t), by_layer in features.items():
            key = (short_name(layer), channel, name, t)
            images[key] = by_layer[layer][:2, channel].float().cpu()
            cosine = float(frame_similarity(by_layer[layer][:2])[0])
            cosines.append(dict(zip(FEATURE, key, strict=True)) | {"cosine": cosine})
    return _site_rows(images, FEATURE), cosines


def _site_rows(maps: Mapping[tuple, Tensor], keys: tuple[str, ...]) -> list[dict]:
    """One row per site of each map."""
    return [
        dict(zip(keys, key, strict=True))
        | {"frame": f + 1, "row": i, "column": j, "value": value}
        for key, pair in maps.items()
        for f, image in enumerate(pair.tolist())
        for i, line in enumerate(image)
        for j, value in enumerate(line)
    ]  # fmt: skip
