"""Trajectories: the sites that one point of a scene visits, linked by optical flow.

Cong et al. 2023, FLATTEN (arXiv 2310.05922), section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Trajectories through the sites of a clip. Each site of each frame lies on exactly one.

    of_sites: f n, the number of the trajectory of a site. sites: p f, the site of a trajectory in
    each frame; -1 in frames that it does not visit.
    """

    of_sites: Int[Tensor, "f n"]
    sites: Int[Tensor, "p f"]

    def gathered(self, x: Float[Tensor, "f n d"]) -> Float[Tensor, "p f d"]:
        """The tokens of each trajectory, frame by frame; any token where it is not."""
        frames = torch.arange(len(x), device=x.device)
        return x[frames, self.sites.clamp_min(0)]

    def scattered(self, y: Float[Tensor, "p f d"]) -> Float[Tensor, "f n d"]:
        """The tokens of each site: the way back of `gathered`."""
        frames = torch.arange(y.shape[1], device=y.device)[:, None]
        return y[self.of_sites, frames]

    @property
    def visits(self) -> Bool[Tensor, "p f"]:
        """Whether a trajectory visits a frame."""
        return self.sites >= 0


def linked(
    flow: Float[Tensor, "p 2 y x"],
    height: int,
    width: int,
    valid: Bool[Tensor, "p 1 y x"] | None = None,
    generator: torch.Generator | None = None,
) -> Trajectories:
    """Link the sites of a clip along its optical flow, rounded to whole sites.

    flow: from each frame to the next, in its own pixels, dx first. height, width: of the grid of
    sites. valid: where the flow may be trusted; elsewhere a trajectory ends.
    Where several trajectories arrive at one site, one of them goes on, drawn at random. A site at
    which none arrives begins a new one.
    """
    y_pixels, x_pixels = flow.shape[2:]
    flow = F.interpolate(flow, (height, width), mode="nearest")
    flow = flow * torch.tensor([width / x_pixels, height / y_pixels]).to(flow)[:, None, None]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = (torch.stack([x, y]).to(flow) + flow).round().long()
    limit = torch.tensor([width, height])[:, None, None]
    goes_on = ((at >= 0) & (at < limit)).all(1)
    if valid is not None:
        goes_on &= F.interpolate(valid.to(flow), (height, width), mode="nearest")[:, 0] > 0.5
    targets = (at[:, 1] * width + at[:, 0]).flatten(1)

    # Follow all trajectories from frame to frame.
    n = height * width
    of_sites = torch.full((len(flow) + 1, n), -1)
    of_sites[0], n_known = torch.arange(n), n
    for frame, (target, moves) in enumerate(zip(targets, goes_on.flatten(1), strict=True), 1):
        order = torch.randperm(n, generator=generator)
        for_sure = order[moves[order]]
        of_sites[frame, target[for_sure]] = of_sites[frame - 1, for_sure]
        begins = of_sites[frame] < 0
        n_new = int(begins.sum())
        of_sites[frame, begins] = torch.arange(n_known, n_known + n_new)
        n_known += n_new

    sites = torch.full((n_known, len(of_sites)), -1)
    for frame, numbers in enumerate(of_sites):
        sites[numbers, frame] = torch.arange(n)
    return Trajectories(of_sites, sites)
