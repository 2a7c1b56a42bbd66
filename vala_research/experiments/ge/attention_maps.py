"""Notebook 34: what words and objects attend to, and how alike adjacent frames are.

GE-Adapter (arXiv 2501.04606), Figs. 8 and 10; its theory (arXiv 2504.16016), Fig. 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from vala_research import read_clip
from vala_research.adapter.vision import VisionEncoder
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import Case, sprite_cases
from vala_research.evaluation.figures import COLUMN, STYLE, Picture, drawn
from vala_research.evaluation.probes import word_positions
from vala_research.evaluation.verdicts import Claim, n_clips_of
from vala_research.experiments.contract import CLIP, STABLE_DIFFUSION, Preset, part_of, save_rows
from vala_research.experiments.ge import alignment_error
from vala_research.experiments.ge.attention_figures import features_figure, maps_figure
from vala_research.experiments.ge.attention_measurements import (
    alignment_rows,
    feature_rows,
    map_rows,
)
from vala_research.sprites.scene import WORLD


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 34."""

    PRESETS = {
        "smoke": {"n_clips": 4, "token_steps": 3},
        "sprites": {"token_clips": 8, "token_steps": 60},
        "paper": {"model": STABLE_DIFFUSION, "token_steps": 60},
    }

    CHOICES = {"noise": ("own", "shared")}

    model: str = "miniature"  # or a folder or a hub id
    clip: str = ""  # a video, gif or folder of frames; "": sprite clips
    prompt: str = ""  # what the clip shows
    word: str = ""  # words of that prompt whose map is shown; sprites: the object's shape
    adapter: str = "miniature"  # or a folder that vala train wrote
    n_clips: int = 8  # sprite clips in the numbers
    shown: int = 3  # which of them is pictured
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    maps_at: Sequence[int] = (1, 541, 981)  # timesteps of the attention maps
    features_at: Sequence[int] = (932, 941)  # timesteps of the features
    token_clips: int = 2  # of them with prompt tokens fine-tuned for |Delta Z|; 0: none
    token_steps: int = 6  # of that fine-tuning
    noise: str = "own"  # a noise for each frame, as in training; "shared": one for all frames
    seed: int = 0  # of the noise on the clip; sprite clip i has seed i

    @property
    def inputs(self) -> list[str]:
        """Files whose hashes `emit` records."""
        own = "" if self.adapter == "miniature" else self.adapter
        return [path for path in (self.clip, own) if path]

    def cases(self, size: int) -> list[Case]:
        if self.clip:
            frames = read_clip(self.clip, 2, size=size).frames
            return [Case(frames, self.prompt, self.word, seed=self.seed)]
        return sprite_cases(self.n_clips, WORLD, 2, size)

    def shown_case(self, size: int) -> Case:
        """The case that is pictured."""
        cases = self.cases(size)
        return cases[min(self.shown, len(cases) - 1)]


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Rows of six parts.

    "case": the pictured clip's size, prompt, words and their positions among the tokens. "maps":
    `map_rows`. "layers": `alignment_rows` of all clips. "features", "cosines": `feature_rows`.
    "tokens": `alignment_error.error_rows` at the middle of maps_at.
    """
    pipe = quiet_pipeline(settings.model, settings.dtype)
    pipe.load_adapter(settings.adapter)
    size = settings.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    case = settings.shown_case(size)
    positions = word_positions(pipe.tokenizer, case.prompt, case.words)
    maps_at, features_at = (
        {t: case.views(pipe, t, settings.noise) for t in times}
        for times in (settings.maps_at, settings.features_at)
    )
    timesteps = [*settings.maps_at, *settings.features_at]
    features, cosines = feature_rows(features_at)
    parts = {
        "case": [{"size": size, "prompt": case.prompt, "words": case.words,
                  "positions": str(positions)}],
        "maps": map_rows(case, maps_at, positions),
        "layers": alignment_rows(pipe, settings.cases(size), timesteps, settings.noise),
        "features": features,
        "cosines": cosines,
        "tokens": token_rows(pipe, settings, size),
    }  # fmt: skip
    named = [{"part": part} | row for part, rows in parts.items() for row in rows]
    return save_rows(named, output)


def token_rows(pipe, settings: Settings, size: int) -> list[dict]:
    """|Delta Z| of prompt tokens before and after fine-tuning, for the first clips."""
    if not settings.token_clips:
        return []
    encoder = "miniature" if settings.model == "miniature" else CLIP
    return alignment_error.error_rows(
        pipe, VisionEncoder.from_pretrained(encoder), settings.cases(size)[: settings.token_clips],
        middle_of(settings.maps_at), settings.token_steps,
    )  # fmt: skip


def middle_of(timesteps: Sequence[int]) -> int:
    return timesteps[len(timesteps) // 2]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over clips and layers per timestep and adapter; columns of `layer_rows`.

    on_object, mirrored and area, where the object is known, are of the third upsampling block.
    """
    layers, by = part_of(rows, "layers"), ["t", "adapter"]
    means = layers.groupby(by)[["cross", "self", "map", "to_adapter"]].mean()
    if "on_object" not in layers:
        return means
    third = layers[layers.third_block.astype(bool)]
    return means.join(third.groupby(by)[["on_object", "mirrored", "area"]].mean())


def figure(rows: pd.DataFrame, settings: Settings) -> Picture:
    """Attention maps of the pictured clip."""
    size = int(part_of(rows, "case")["size"].iloc[0])
    return maps_figure(part_of(rows, "maps"), settings.shown_case(size))


@drawn(claim="features are no less alike")
def feature_figure(rows: pd.DataFrame) -> Picture:
    """Cross-attention features of the pictured clip."""
    return features_figure(part_of(rows, "features"), part_of(rows, "cosines"))


@drawn(claim="|Delta Z|")
def token_figure(rows: pd.DataFrame) -> Picture:
    """|Delta Z| before and after fine-tuning, one line per clip: what Fig. 3's caption is about."""
    with rc_context(STYLE):
        figure = Picture(figsize=(COLUMN, 2.4))
        alignment_error.draw(figure.add_subplot(), part_of(rows, "tokens"))
    return figure


def claims(rows: pd.DataFrame, settings: Settings) -> list[Claim]:
    """The object's word attends to the object; the adapter makes features no less alike.

    The first needs clips whose object is known; the second is of the miniature's adapter.
    """
    means, stated = table(rows), []
    n_clips = n_clips_of(part_of(rows, "layers"))
    if "on_object" in means:
        t = middle_of(settings.maps_at)
        middle = means.loc[t, "without"]
        stated = [
            Claim.of_fact(f"at t = {t} the object holds more of its word's map than {other}",
                          "difference of shares", middle.on_object - middle[column],
                          middle.on_object > middle[column], n_clips=n_clips)
            for column, other in (("mirrored", "its turned outline"), ("area", "of an even map"))
        ]  # fmt: skip
    if settings.adapter == "miniature" and not settings.clip:
        alike = means.loc[list(settings.features_at)].groupby("adapter").cross.mean()
        gain = alike["with"] - alike["without"]
        stated.append(Claim.of_fact("adjacent frames' features are no less alike with the adapter",
                                    "gain in mean cosine", gain, gain >= 0,
                                    n_clips=n_clips))  # fmt: skip
    tokens = part_of(rows, "tokens")
    return stated + (alignment_error.claims(tokens) if len(tokens) else [])
