"""Draw what words and objects attend to, and one channel of the features: pages for a paper.

GE-Adapter (arXiv 2501.04606) Figs. 8 and 10; its theory (arXiv 2504.16016) Fig. 3.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import STYLE, Picture
from vala_research.evaluation.sheet import Sheet
from vala_research.experiments.ge.attention_measurements import FEATURE, localisation
from vala_research.methods.temporal import frame_similarity

LABELS = {"without": "without adapter", "with": "with adapter"}
DENSITY, LEVELS = "magma", "viridis"


def maps_figure(rows: pd.DataFrame, case: Case) -> Picture:
    """The maps of `map_rows` in two adjacent frames, one row per timestep.

    Left: attention to the words. Right: attention from the object. Each side has one scale. Below
    each map: its share on the object, and on the object's outline turned by half a turn about the
    middle.
    """
    maps = _images(rows, ("map", "adapter", "t"))
    sides, names, times = (list(dict.fromkeys(part)) for part in zip(*maps, strict=True))
    scales = {s: Normalize(0, max(float(m.max()) for k, m in maps.items() if k[0] == s))
              for s in sides}  # fmt: skip
    titles = (f'attends to "{case.words}"', "receives from "
              + ("all sites" if case.mask is None else "the object"))  # fmt: skip
    with rc_context(STYLE):
        sheet = Sheet(len(sides), len(names), 1 + len(times), left=0.78, between=0.5)
        _heads(sheet, titles, [LABELS[n] for n in names])
        sheet.label(0, "frames")
        for row, t in enumerate(times, 1):
            sheet.label(row, f"t = {t:g}")
        for g, side in enumerate(sides):
            for p, name in enumerate(names):
                for f in range(2):
                    picture = case.frames[f].detach().float().cpu().permute(1, 2, 0).clamp(0, 1)
                    sheet.show(0, g, p, f, picture.numpy())
                for row, t in enumerate(times, 1):
                    _pair(sheet, row, g, p, maps[side, name, t], case, scales[side])
            sheet.bar(g, range(1, 1 + len(times)), scales[side], DENSITY, "× even")
    return sheet.figure


def _pair(sheet: Sheet, row: int, g: int, p: int, maps: Tensor, case: Case, scale) -> None:
    """The maps of two frames with the true outline, and their score below."""
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


def features_figure(rows: pd.DataFrame, cosines: pd.DataFrame) -> Picture:
    """One channel of each decoder cross-attention's output; rows and cosines of `feature_rows`.

    Two adjacent frames at each timestep, without and with the adapter. Each layer has one scale.
    """
    images = _images(rows, FEATURE)
    layers, _, names, times = (list(dict.fromkeys(part)) for part in zip(*images, strict=True))
    by_picture = cosines.set_index(list(FEATURE)).cosine
    with rc_context(STYLE):
        sheet = Sheet(len(names), len(times), len(layers))
        _heads(sheet, [LABELS[n] for n in names], [f"t = {t:g}" for t in times])
        for row, layer in enumerate(layers):
            of_layer = {key: image for key, image in images.items() if key[0] == layer}
            every = torch.stack(list(of_layer.values()))
            scale = Normalize(float(every.min()), float(every.max()))
            for key, image in of_layer.items():
                _, channel, name, t = key
                g, p = names.index(name), times.index(t)
                for f in range(2):
                    sheet.show(row, g, p, f, image[f].numpy(), cmap=LEVELS, norm=scale)
                sheet.note(row, g, p, f"cosine {by_picture[key]:.4f}")
            sheet.label(row, f"{layer}\nch. {channel:g}")
            sheet.bar(len(names) - 1, range(row, row + 1), scale, LEVELS, "")
    return sheet.figure


def _heads(sheet: Sheet, groups: Sequence[str], pairs: Sequence[str]) -> None:
    """Titles of the groups and of the pairs in each; f1 and f2 over the columns."""
    for g, title in enumerate(groups):
        middle = (sheet.x(g, 0, 0) + sheet.x(g, sheet.pairs - 1, 1) + sheet.cell) / 2
        sheet.write(middle, 0.17, title, 8, ha="center", weight="bold")
        for p, words in enumerate(pairs):
            sheet.write(sheet.middle(g, p), 0.36, words, 7, ha="center")
            for f in range(2):
                x = sheet.x(g, p, f) + sheet.cell / 2
                sheet.write(x, sheet.head - 0.06, f"f{f + 1}", 6.5, ha="center", color="#555555")


def _images(rows: pd.DataFrame, keys: Sequence[str]) -> dict[tuple, Float[Tensor, "f h w"]]:
    """The pictures of rows per site, by key."""
    images = {}
    for key, sites in rows.groupby(list(keys), sort=False):
        shape = (int(sites.frame.max()), int(sites.row.max()) + 1, int(sites.column.max()) + 1)
        images[key] = torch.tensor(sites.value.to_numpy(), dtype=torch.float32).view(shape)
    return images
