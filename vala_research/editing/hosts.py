"""The editors of other papers, as named presets of an edit.

Each is what its released code does, as far as the engine has a place for it. `notebooks/README.md`
lists where code and paper differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vala_research import chosen_from
from vala_research.diffusion.controlnet import Control
from vala_research.diffusion.injection import Injection
from vala_research.editing.defaults import EditDefaults


@dataclass(frozen=True)
class Host:
    """An editor of another paper. Its values stand where a call gives none.

    attention, injection, inversion: as in an edit.
    num_inference_steps, guidance_scale: for Stable Diffusion. A checkpoint with values of its own
        keeps these two.
    wants_control: the editor keeps the layout of a clip by a ControlNet, and by nothing else.
    """

    paper: str
    attention: str
    injection: Injection = Injection(0, 0)
    inversion: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    wants_control: bool = False

    def over(self, own: EditDefaults) -> EditDefaults:
        """The values of an edit by this editor, of a checkpoint with these values."""
        field = EditDefaults()
        kept = {
            name: getattr(self, name)
            for name in ("num_inference_steps", "guidance_scale")
            if getattr(own, name) == getattr(field, name)
        }
        ours = {name: getattr(self, name) for name in ("attention", "injection", "inversion")}
        return replace(own, **ours, **kept)


PLUG_AND_PLAY = Injection(0.5, 0.8)

HOSTS: dict[str, Host] = {
    "text2video_zero": Host(
        "Khachatryan et al. 2023, arXiv 2303.13439", "first", inversion="noise",
        num_inference_steps=20, guidance_scale=9.0, wants_control=True,
    ),
    "token_flow": Host("Geyer et al. 2023, arXiv 2307.10373", "token_flow", PLUG_AND_PLAY),
    "vid2vid_zero": Host(
        "Wang et al. 2023, arXiv 2303.17599", "layered", Injection(0, 0, words=0.8),
        "null_text",
    ),
    "vid_to_me": Host("Li et al. 2023, arXiv 2312.10656", "token_merging", PLUG_AND_PLAY),
    "rave": Host("Kara et al. 2023, arXiv 2312.04524", "grid_shuffle", wants_control=True),
    "flatten": Host(
        "Cong et al. 2023, arXiv 2310.05922", "trajectories", Injection(0.8, 0.8),
        guidance_scale=10.0,
    ),
}  # fmt: skip


def defaults_of(own: EditDefaults, host: str | None) -> EditDefaults:
    """The values of an edit where its call says nothing: the checkpoint's, or a host's over them.

    Raises InputError for an unknown host.
    """
    if host is None:
        return own
    chosen_from("host", host, HOSTS)
    return HOSTS[host].over(own)


def warn_without_control(host: str | None, controls: Sequence[Control]) -> None:
    """Warn of a host that keeps the layout by a ControlNet, where none is loaded."""
    if host is not None and HOSTS[host].wants_control and not controls:
        warnings.warn(
            f"The host {host} keeps the layout of a clip by a ControlNet, and none is loaded: load "
            "one by pipe.load_controlnet, or --controlnet.",
            stacklevel=3,
        )
