"""Pictures for a paper: what words and objects attend to, and one channel of what comes of it.

GE-Adapter (arXiv 2501.04606) Figs. 8 and 10; its theory (arXiv 2504.16016) Fig. 3.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import STYLE, Picture
from vala_research.evaluation.probes import (
    View,
    attention_maps,
    decoder_layers,
    feature_maps,
    self_attention_maps,
    short_name,
    third_upsampling_block,
)
from vala_research.evaluation.sheet import Sheet
from vala_research.experiments.ge.attention_maps import localisation
from vala_research.methods.temporal import frame_similarity

Views = Mapping[str, View]  # "without" and "with" the adapter
LABELS = {"without": "without adapter", "with": "with adapter"}
DENSITY, LEVELS = "magma", "viridis"


def attention_figure(
    case: Case, at: Mapping[int, Views], positions: Sequence[int]
) -> tuple[Picture, list[dict]]:
    """Third upsampling block, two adjacent frames, a row a timestep; and every plotted number.

    Left, what attends to the words; right, what the object attends to (its true sites where known,
    else all sites). Times an even spread: 1 is what every site would have. One scale a side. Under
    it the share on the object, and on its outline turned by half a turn about the middle.
    """
    maps = block_maps(case, at, positions)
    sides = dict.fromkeys(k[0] for k in maps)
    scales = {s: Normalize(0, max(float(m.max()) for k, m in maps.items() if k[0] == s))
              for s in sides}  # fmt: skip
    names = list(next(iter(at.values())))
    titles = (f'attends to "{case.words}"', "receives from "
              + ("all sites" if case.mask is None else "the object"))  # fmt: skip
    with rc_context(STYLE):
        sheet = Sheet(len(sides), len(names), 1 + len(at), left=0.78, between=0.5)
        _heads(sheet, titles, [LABELS[n] for n in names])
        sheet.label(0, "frames")
        for row, t in enumerate(at, 1):
            sheet.label(row, f"t = {t}")
        for g, side in enumerate(sides):
            for p, name in enumerate(names):
                for f in range(2):
                    picture = case.frames[f].detach().float().cpu().permute(1, 2, 0).clamp(0, 1)
                    sheet.show(0, g, p, f, picture.numpy())
                for row, t in enumerate(at, 1):
                    _pair(sheet, row, g, p, maps[side, name, t], case, scales[side])
            sheet.bar(g, range(1, 1 + len(at)), scales[side], DENSITY, "× even")
    return sheet.figure, _values(maps, ("map", "adapter", "t"))


def block_maps(
    case: Case, at: Mapping[int, Views], positions: Sequence[int]
) -> dict[tuple, Float[Tensor, "2 h w"]]:
    """(words or object, without or with, t) -> maps of the first two frames, times even.

    Means over the layers of the third upsampling block, each of which counts alike.
    """
    maps = {}
    for t, pair in at.items():
        for name, view in pair.items():
            layers = third_upsampling_block(view.unet)
            crossed = attention_maps(view, list(layers), [positions])
            own = self_attention_maps(view, list(layers.values()), case.mask)
            for side, found in (("words", crossed), ("object", own)):
                each = torch.stack([m[:2, 0].float().cpu() for m in found.values()])
                maps[side, name, t] = (each / each.mean((2, 3), keepdim=True)).mean(0)
    return {k: maps[k] for k in sorted(maps, key=lambda k: k[0] != "words")}


def _pair(sheet: Sheet, row: int, g: int, p: int, maps: Tensor, case: Case, scale) -> None:
    """Two frames' maps, the true outline over them, and what the map scores there."""
    for f in range(2):
        axes = sheet.show(row, g, p, f, maps[f].numpy(), cmap=DENSITY, norm=scale)
        if case.mask is not None:
            _outline(axes, case.mask[f, 0])
    if case.mask is None:
        words = f"cosine {float(frame_similarity(maps)[0]):.3f}"
    else:
        mask = case.mask[:2].cpu()
        here, area = localisation(maps, mask)
        turned, _ = localisation(maps, mask.flip(2, 3))
        words = f"on object {here:.0%}, turned {turned:.0%}"
    sheet.note(row, g, p, words)


def _outline(axes: Axes, mask: Float[Tensor, "y x"]) -> None:
    y, x = ((np.arange(n) + 0.5) / n for n in mask.shape)
    axes.contour(x, y, mask.cpu().numpy(), levels=[0.5], colors="white", linewidths=0.7)


def feature_figure(at: Mapping[int, Views]) -> tuple[Picture, list[dict]]:
    """One channel of cross-attention's output, decoder layers under each other; and its numbers.

    Two adjacent frames at each timestep, without and with the adapter. The channel is the one that
    varies most over the sites without it; one scale a layer; the cosine is of all channels.
    """
    times, first = list(at), next(iter(at.values()))
    names, layers = list(first), list(decoder_layers(first["without"].unet))
    found = {(n, t): feature_maps(at[t][n], layers) for t in times for n in names}
    shown, channels = {}, {}
    with rc_context(STYLE):
        sheet = Sheet(len(names), len(times), len(layers))
        _heads(sheet, [LABELS[n] for n in names], [f"t = {t}" for t in times])
        for row, layer in enumerate(layers):
            base = found["without", times[0]][layer][:2].float()
            channels[layer] = c = int(base.var((2, 3)).mean(0).argmax())
            images = {k: x[layer][:2, c].float().cpu() for k, x in found.items()}
            every = torch.stack(list(images.values()))
            scale = Normalize(float(every.min()), float(every.max()))
            sheet.label(row, f"{short_name(layer)}\nch. {c}")
            for (name, t), image in images.items():
                g, p = names.index(name), times.index(t)
                for f in range(2):
                    sheet.show(row, g, p, f, image[f].numpy(), cmap=LEVELS, norm=scale)
                cosine = float(frame_similarity(found[name, t][layer][:2])[0])
                sheet.note(row, g, p, f"cosine {cosine:.4f}")
                shown[short_name(layer), c, name, t] = image
            sheet.bar(len(names) - 1, range(row, row + 1), scale, LEVELS, "")
    return sheet.figure, _values(shown, ("layer", "channel", "adapter", "t"))


def _heads(sheet: Sheet, groups: Sequence[str], pairs: Sequence[str]) -> None:
    """Titles of the groups, of the pairs in each, and f1, f2 over the columns."""
    for g, title in enumerate(groups):
        middle = (sheet.x(g, 0, 0) + sheet.x(g, sheet.pairs - 1, 1) + sheet.cell) / 2
        sheet.write(middle, 0.17, title, 8, ha="center", weight="bold")
        for p, words in enumerate(pairs):
            sheet.write(sheet.middle(g, p), 0.36, words, 7, ha="center")
            for f in range(2):
                x = sheet.x(g, p, f) + sheet.cell / 2
                sheet.write(x, sheet.head - 0.06, f"f{f + 1}", 6.5, ha="center", color="#555555")


def _values(maps: Mapping[tuple, Tensor], keys: tuple[str, ...]) -> list[dict]:
    """One row a site of each map."""
    return [
        dict(zip(keys, key, strict=True))
        | {"frame": f + 1, "row": i, "column": j, "value": value}
        for key, pair in maps.items()
        for f, image in enumerate(pair.tolist())
        for i, line in enumerate(image)
        for j, value in enumerate(line)
    ]  # fmt: skip
