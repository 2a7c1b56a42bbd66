"""ControlNets: load one, set what it sees, add its residuals to a UNet.

ControlNet (Zhang et al. 2023, arXiv 2302.05543) keeps the layout of a frame by a picture of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from, miniature_path, number_in
from vala_research.diffusion.backbone import UNet, device_of
from vala_research.diffusion.control_pictures import PICTURES
from vala_research.diffusion.loading import load_network
from vala_research.diffusion.pooled_text import conditions
from vala_research.diffusion.records import refuse_transformer
from vala_research.diffusion.schedule import is_within
from vala_research.diffusion.vae import vae_factor

GIVEN = "given"


@dataclass(frozen=True)
class ControlSettings:
    """What a ControlNet sees, and where and how strongly it acts.

    picture: "frames", the clip itself, as a ControlNet for edits sees it (ip2p, tile); "canny", its
        outlines; "given", pictures that come with the ControlNet, see `Control`.
    scale: factor of its residuals.
    interval: where it acts, as fractions of the T diffusion steps.
    in_inversion: whether it acts in the inversion too. Only then does an edit between equal prompts
        return to the clip.
    """

    picture: str = "frames"
    scale: float = 1.0
    interval: Any = (0.0, 1.0)
    in_inversion: Any = True  # a file may hold anything

    def __post_init__(self):
        chosen_from("picture of a ControlNet", self.picture, [*PICTURES, GIVEN])
        number_in("The scale of a ControlNet", self.scale, -1e3, 1e3)
        if not isinstance(self.in_inversion, bool):
            raise InputError(f"in_inversion is {str(self.in_inversion)[:50]}: give true or false.")
        ends = self.interval if isinstance(self.interval, list | tuple) else ()
        is_right = len(ends) == 2 and all(isinstance(x, int | float) for x in ends)
        if not is_right or not 0 <= ends[0] < ends[1] <= 1:
            raise InputError(
                f"The interval of a ControlNet is {str(self.interval)[:50]}: give two fractions of "
                "T in order, such as 0.2 1."
            )
        object.__setattr__(self, "interval", tuple(map(float, ends)))  # json has lists


@dataclass(frozen=True)
class Control:
    """A ControlNet at work on a clip.

    pictures: one per frame, f 3 h w in [0, 1]; None makes them from the clip by the settings.
    """

    network: ControlNetModel
    settings: ControlSettings = ControlSettings()
    pictures: Float[Tensor, "f 3 h w"] | None = None

    def of_clip(self, frames: Float[Tensor, "f 3 h w"] | None) -> "Control":
        """This control with its pictures. Raises InputError where they cannot be made."""
        if self.pictures is not None:
            return self
        if self.settings.picture == GIVEN:
            raise InputError(
                "A ControlNet sees pictures of your own, and none are given: load it with the "
                "pictures as `picture`."
            )
        if frames is None:
            raise InputError(
                "A ControlNet sees the clip, and only latents are given: give the video too, or "
                "unload the ControlNet."
            )
        return replace(self, pictures=PICTURES[self.settings.picture](frames))

    def of_frames(self, n: int) -> "Control":
        """This control for the first n frames."""
        return self if self.pictures is None else replace(self, pictures=self.pictures[:n])

    def acts(self, t: float, n_timesteps: int) -> bool:
        """Whether it acts at timestep t of n_timesteps."""
        return is_within(t, self.settings.interval, n_timesteps)


def load_controlnet(where: str | PathLike, unet: UNet) -> ControlNetModel:
    """Load a ControlNet, on the device and in the precision of `unet`.

    where: "miniature", or a folder or hub id.
    Raises InputError when it cannot be read as safetensors, or was made for a UNet of other widths.
    """
    remedy = "give the folder or hub id of a diffusers ControlNetModel with safetensors weights."
    folder = miniature_path("controlnet") if str(where) == "miniature" else where
    controlnet = load_network(
        ControlNetModel, folder, f"The ControlNet {str(where)!r}", remedy, unet.dtype
    )
    check_controlnet(controlnet, unet, f"The ControlNet {str(where)!r}")
    return controlnet.to(device_of(unet))


def check_controlnet(controlnet: ControlNetModel, unet: UNet, what: str) -> None:
    """Check that a ControlNet was made for a UNet of these widths. Raises InputError."""
    refuse_transformer(unet, "A ControlNet")
    for key in ("in_channels", "cross_attention_dim", "block_out_channels"):
        theirs, ours = controlnet.config[key], unet.config[key]
        theirs, ours = (list(x) if isinstance(x, tuple) else x for x in (theirs, ours))
        if theirs != ours:
            raise InputError(
                f"{what} has {key} {theirs} and the UNet {ours}: give one that was trained for "
                "this UNet."
            )


def check_factor(controlnet: ControlNetModel, vae: Any) -> None:
    """Check that a ControlNet makes its pictures as small as the VAE. Raises InputError."""
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    if factor != vae_factor(vae):
        raise InputError(
            f"The ControlNet makes its pictures {factor} times smaller and the VAE "
            f"{vae_factor(vae)} times: give one that was trained for this model."
        )


def control_residuals(
    controls: Sequence[Control], x: Float[Tensor, "g f c h w"], t: float,
    text: Float[Tensor, "g n d"], frames: slice | list[int], n_timesteps: int,
) -> dict[str, Any]:  # fmt: skip
    """The residuals of the ControlNets that act at t, by the names of the UNet's arguments.

    frames: which frames of the clip x holds. Residuals of several ControlNets add up.
    """
    g, f = x.shape[:2]
    rows = text[:, None].expand(-1, f, -1, -1).flatten(0, 1)
    down: list[Tensor] = []
    for control in controls:
        if not control.acts(t, n_timesteps):
            continue
        net = control.network
        pictures = control.pictures[frames].to(x.device, net.dtype)
        more, mid = net(
            x.flatten(0, 1).to(net.dtype), t, controlnet_cond=pictures.repeat(g, 1, 1, 1),
            conditioning_scale=control.settings.scale, return_dict=False,
            **conditions(net, rows.to(net.dtype), tuple(pictures.shape[-2:])),
        )  # fmt: skip
        more = [*more, mid]
        down = [a + b for a, b in zip(down, more, strict=True)] if down else more
    if not down:
        return {}
    return {
        "down_block_additional_residuals": tuple(down[:-1]),
        "mid_block_additional_residual": down[-1],
    }
