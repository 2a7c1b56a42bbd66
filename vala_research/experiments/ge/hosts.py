"""Notebook 36: what a temporal adapter brings to the editors that its paper plugs it into.

GE-Adapter (arXiv 2501.04606), Table 1 and Figs. 1 and 4. The editors are those of
`editing.hosts`; rows, table and claims are those of `adapter_gains`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.attending import needs_source
from vala_research.diffusion.inversion import METHODS
from vala_research.editing.extras import own_parts
from vala_research.editing.hosts import HOSTS
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import EditSetting, edited_frames
from vala_research.evaluation.comparison import METRICS
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.evaluation.sheet import strip
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED, LaterClipsPreset
from vala_research.experiments.ge import adapter_gains
from vala_research.experiments.ge.adapter_variants import BESIDE, perceptual_measure

IP2P = "lllyasviel/control_v11e_sd15_ip2p"  # a ControlNet that sees the frames
FIRST_BY_PAPER = ("text2video_zero", "token_flow", "vid2vid_zero", "vid_to_me")  # its Table 1


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 36."""

    PRESETS = {
        "smoke": dict(hosts=("token_flow", "rave"), kinds=("several",), n_clips=1, n_frames=3,
                      steps=2),
        "sprites": POINT | dict(n_clips=8, first_clip=96, kinds=("several", "colour")),
        "paper": PUBLISHED | dict(inversion="", clip_model=CLIP, controlnet=IP2P, n_processes=0),
    }  # fmt: skip

    CHOICES = LaterClipsPreset.CHOICES | {
        "hosts": HOSTS, "parts": BESIDE, "inversion": ("", *METHODS),
    }  # fmt: skip

    hosts: Sequence[str] = FIRST_BY_PAPER  # editors, by their names in editing/hosts.py
    inversion: str = "ddim"  # of the hosts that invert; "": their own, such as "null_text"
    adapter: str = "miniature"  # or a folder that vala train wrote
    controlnet: str = "miniature"  # of the hosts that need one: a folder or a hub id; "": none


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """"host, without" and "host, with" the adapter, for each host."""
    return {
        f"{host}, {side}": _host_setting(host, settings, adapter)
        for host in settings.hosts
        for side, adapter in (("without", ""), ("with", settings.adapter))
    }


def _host_setting(name: str, settings: Settings, adapter: str) -> EditSetting:
    """The edit by a host, at the steps and the guidance of the experiment."""
    host, parts = HOSTS[name], settings.own_parts
    if host.wants_control and settings.controlnet and not parts.get("controlnet"):
        brought = own_parts(settings.model, ("controlnet",))
        parts |= brought if settings.controlnet == "miniature" else {
            "controlnet": settings.controlnet
        }  # fmt: skip
    starts_from_noise = host.inversion == "noise"
    inversion = host.inversion if starts_from_noise else settings.inversion or host.inversion
    return EditSetting(
        host.attention, inversion, host.injection, settings.guidance, settings.steps,
        adapter=adapter, **parts,
    )  # fmt: skip


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit by every host without and with the adapter; rows of `comparison.compare`."""
    return settings.compare(edit_settings(settings), output, measure=perceptual_measure)


table = adapter_gains.table
figure = adapter_gains.figure


def costs(hosts: Sequence[str], n_frames: int = 16) -> pd.Series:
    """FLOPs of an edit's step at Stable Diffusion 1.5's size, over those frame by frame.

    n_frames: of 512 pixels. Guidance has two branches; a host that sees the source has a third.
    """
    unet, shape, costs = meta_unet(), (n_frames, 64, 64), {}
    for name in hosts:
        host = HOSTS[name]
        sees_source = needs_source(host.attention) or max(host.injection.n_steps(50)) > 0
        policy = meta_policy(host.attention, *shape)
        costs[name] = forward_flops(unet, policy, *shape, n_branches=2 + sees_source)
    own = forward_flops(unet, "own", *shape, n_branches=2)
    return pd.Series(costs, name="FLOPs of a step, times frame by frame") / own


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each host without and with the adapter, in the units of the metrics' names."""
    means = adapter_gains.side_table(rows)
    shown = [m for m in adapter_gains.SHOWN if m in means]
    scaled = means[shown] * [METRICS[m].factor for m in shown]
    return scaled.set_axis([METRICS[m].axis for m in shown], axis=1).round(2)


def strips(settings: Settings, n_columns: int = 6) -> Figure:
    """The first edit by every host, without and with the adapter, beside source and true edit."""
    case = settings.cases()[0]
    material = case.material(settings.n_frames, settings.size)
    pipe = quiet_pipeline(settings.model, settings.dtype)
    edits = edited_frames(pipe, case, edit_settings(settings), settings.n_frames, settings.size)
    rows = {"source": material.frames}
    rows |= {name.replace(", ", "\n"): frames.float() for name, frames in edits.items()}
    if material.truth is not None:
        rows["true edit"] = material.truth
    return strip(rows, n_columns, cell=96)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Those of `adapter_gains`: on the mean over hosts, nothing is lost; gains are reported."""
    return adapter_gains.claims(rows)
