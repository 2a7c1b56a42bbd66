"""Settings of experiments that edit by the editors of other papers: notebooks 36 and 37."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.attending import needs_source
from vala_research.diffusion.inversion import InversionSettings
from vala_research.editing.extras import own_parts
from vala_research.editing.hosts import HOSTS
from vala_research.evaluation.comparison_tables import in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.experiments.contract import CLIP, PUBLISHED, LaterClipsPreset
from vala_research.experiments.ge import adapter_gains
from vala_research.experiments.ge.adapter_variants import BESIDE

IP2P = "lllyasviel/control_v11e_sd15_ip2p"  # a ControlNet that sees the frames
OF_THE_PAPER = ("text2video_zero", "token_flow", "vid2vid_zero", "vid_to_me")
PAPER = PUBLISHED | dict(clip_model=CLIP, controlnet=IP2P, n_processes=0)


@dataclass(frozen=True, kw_only=True)
class HostPreset(LaterClipsPreset):
    """Base of such settings."""

    CHOICES: ClassVar[dict[str, Collection]] = LaterClipsPreset.CHOICES | {
        "hosts": HOSTS, "parts": BESIDE,
    }  # fmt: skip

    hosts: Sequence[str] = OF_THE_PAPER  # editors, by their names in editing/hosts.py
    controlnet: str = "miniature"  # of the hosts that need one: a folder or a hub id; "": none

    def host_setting(
        self, name: str, inversion: str | InversionSettings, adapter: str = ""
    ) -> EditSetting:
        """The edit by a host, at the steps and the guidance of the experiment."""
        host, parts = HOSTS[name], self.own_parts
        if host.wants_control and self.controlnet and not parts.get("controlnet"):
            brought: dict[str, Any] = {"controlnet": self.controlnet}
            if self.controlnet == "miniature":
                brought = own_parts(self.model, ("controlnet",))
            parts |= brought
        return EditSetting(
            host.attention, inversion, host.injection, self.guidance, self.steps, adapter=adapter,
            **parts,
        )  # fmt: skip


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


def page(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Means of each host on both sides, in the units of the metrics' names."""
    means = adapter_gains.side_table(rows)
    return in_units(means[[m for m in metrics if m in means]])


def strips(settings: HostPreset, edits: Mapping[str, EditSetting], n_columns: int = 6) -> Figure:
    """The first edit by every host, on both sides, beside source and true edit."""
    return settings.strip_of(edits, n_columns=n_columns)
