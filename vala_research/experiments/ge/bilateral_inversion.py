"""Notebook 30: what filtering every step of an inversion costs.

GE-Adapter (arXiv 2501.04606) 3.2, figures 5 and 7, Table 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.editing.extras import own_parts
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import ClipCase, EditCase, edit_cases, folder_cases
from vala_research.evaluation.comparison_tables import PLACEMENT
from vala_research.evaluation.edit_settings import equip
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.sheet import strip
from vala_research.evaluation.verdicts import Claim, n_clips_of
from vala_research.experiments.contract import (
    ATTENTIONS,
    POINT,
    STABLE_DIFFUSION,
    Preset,
    part_of,
    save_rows,
)
from vala_research.experiments.ge.adapter_variants import BESIDE
from vala_research.experiments.ge.bilateral_measurements import (
    WAYS,
    bias_curves,
    clips_of,
    filter_rows,
    host_rows,
    window_frames,
)
from vala_research.experiments.ge.paper_tables import HOSTS
from vala_research.sprites.scene import WORLD

EVERY = dict(steps=(3, 5, 10, 25, 50), windows=(0, 3, 5, 7), hosts=HOSTS)


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 30."""

    PRESETS = {
        "smoke": {},
        "sprites": dict(
            EVERY, n_clips=8, n_frames=8, parts=POINT["parts"], edit_steps=POINT["steps"],
            guidance=POINT["guidance"], hosts=("own", "sparse_causal", "anchors"),
        ),
        "paper": dict(
            EVERY, model=STABLE_DIFFUSION, n_clips=4, n_frames=8, edit_steps=50, guidance=7.5
        ),
    }

    CHOICES = {"hosts": ATTENTIONS, "parts": BESIDE}

    model: str = "miniature"  # or a folder or a hub id
    parts: Sequence[str] = ()  # of the model's own default edit, which all edits have
    clips: str = ""  # a folder of clips with edits.csv; "": sprite clips of the test split
    n_clips: int = 2  # edits at most; one clip may be edited several times
    n_frames: int = 3  # frames per clip, at least 3
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    steps: Sequence[int] = (3, 6)  # diffusion steps each way, of figure 5
    windows: Sequence[int] = (0, 3, 5)  # sides of the filter's window, ascending; 0: plain DDIM
    hosts: Sequence[str] = ("anchors",)  # attention policies of the edits
    edit_steps: int = 4  # steps of the edits of Table 2
    guidance: float = 2.0  # of the edits; 7.5 is usual for Stable Diffusion
    sigma: float = 1.0  # the filter's intensity, in standard deviations of the latent

    @property
    def filter(self) -> BilateralInversion:
        return BilateralInversion(sigma_intensity=self.sigma)

    def cases(self) -> list[EditCase | ClipCase]:
        if self.clips:
            return folder_cases(self.clips)[: self.n_clips]
        return edit_cases(WORLD, "test", self.n_clips, ["several"])

    def side(self, pipe) -> int:
        return self.size or pipe.unet.config.sample_size * pipe.vae_scale_factor


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Rows of three parts: `filter_rows` ("windows"), `bias_curves` ("steps"), `host_rows`."""
    cases, pipe = settings.cases(), quiet_pipeline(settings.model)
    equip(pipe, **own_parts(settings.model, settings.parts))
    size, ways = settings.side(pipe), WAYS | {"bilateral": settings.filter}
    clips = clips_of(cases, settings.n_frames, size)
    parts = {
        "windows": filter_rows(pipe, clips, settings.steps, settings.windows, settings.filter),
        "steps": bias_curves(pipe, clips, max(settings.steps), settings.filter),
        "edits": host_rows(
            pipe, cases, settings.hosts, ways, settings.n_frames, size, settings.edit_steps,
            settings.guidance,
        ),
    }  # fmt: skip
    named = [{"part": part} | row for part, rows in parts.items() for row in rows]
    return save_rows(named, output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over clips per number of steps and window; columns of `filter_rows`."""
    columns = ["to_vae", "to_source", "ssim", "deviation", "share"]
    return part_of(rows, "windows").groupby(["steps", "window"])[columns].mean()


def edit_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over edits per host and way of inverting."""
    edits = part_of(rows, "edits")
    asked = ("inversion_psnr", "psnr", "success", "warp_error", *PLACEMENT)
    columns = [c for c in asked if c in edits]
    return edits.groupby(["host", "setting"], sort=False)[columns].mean()


@drawn(claim="plain DDIM reconstructs better")
def figure(rows: pd.DataFrame) -> Picture:
    """Left: reconstruction against steps, per window. Right: bias per step below its bound."""
    windows, steps = table(rows).to_vae.unstack("window"), part_of(rows, "steps")
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.5))
        left, right = fig.subplots(1, 2)

        for (k, means), colour in zip(windows.items(), COLOURS, strict=False):
            label = f"{k:g} x {k:g}" if k else "no filter"
            left.plot(means.index, means, "o-", color=colour, label=label)
        left.set(xlabel="diffusion steps", ylabel="PSNR to the VAE round trip (dB)", xscale="log",
                 title="what comes back")  # fmt: skip
        left.set_xticks(windows.index, [f"{n:g}" for n in windows.index])
        left.minorticks_off()
        left.legend(title="window", title_fontsize=7)

        by_clip = steps.groupby("clip", sort=False)
        for (_, line), colour in zip(by_clip, COLOURS, strict=False):
            right.plot(line.step, line.bound, "--", color=colour, lw=1)
            right.plot(line.step, line.bias, "o-", color=colour, ms=3)
        right.plot([], [], "--", color="#555555", lw=1, label="bound b(S) sigma, any latent")
        right.plot([], [], "o-", color="#555555", ms=3, label="measured, one colour per clip")
        right.set(xlabel="step of the inversion", ylabel="max |B(z) - z|", ylim=(0, None),
                  title="what the filter moves")  # fmt: skip
        right.locator_params(axis="x", integer=True)
        right.legend(loc="upper right")
    return fig


def pictures(settings: Settings) -> Picture:
    """The first clip and its reconstructions by window, at the most steps; inverts it again."""
    pipe, cases = quiet_pipeline(settings.model), settings.cases()[:1]
    (clip,) = clips_of(cases, settings.n_frames, settings.side(pipe)).values()
    steps, windows = max(settings.steps), settings.windows
    return strip(window_frames(pipe, *clip, steps, windows, settings.filter), 4)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The bias keeps its bound; filtering loses reconstruction at every setting and host."""
    steps = part_of(rows, "steps")
    keeps = ((0 < steps.bias) & (steps.bias <= steps.bound)).all()
    share = (steps.bias / steps.bound).max()
    stated = [Claim.of_fact("every step is moved, by no more than its bound",
                            "largest bias / bound", share, keeps)]  # fmt: skip
    n_clips = n_clips_of(part_of(rows, "windows"))
    for n, by_window in table(rows).to_vae.groupby("steps"):
        by_window = by_window.droplevel("steps")
        plain, filtered = by_window[0], by_window.drop(0)
        stated += [
            Claim.of_fact(f"at {n:g} steps plain DDIM reconstructs better than every window",
                          "dB above the best one", plain - filtered.max(),
                          plain > filtered.max(), n_clips=n_clips),
            Claim.of_fact(f"at {n:g} steps a larger window does not help",
                          "dB, smallest to largest window", filtered.iloc[-1] - filtered.iloc[0],
                          filtered.is_monotonic_decreasing, n_clips=n_clips),
        ]  # fmt: skip
    psnr = edit_table(rows).inversion_psnr.unstack()
    lost, n_clips = psnr["ddim"] - psnr["bilateral"], n_clips_of(part_of(rows, "edits"), "index")
    return [*stated, Claim.of_fact("on every host the filter loses reconstruction",
                                   "dB lost at least", lost.min(), (lost > 0).all(),
                                   n_clips=n_clips)]  # fmt: skip
