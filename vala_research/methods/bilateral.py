"""Smooth a latent, but not across its edges, by a bilateral filter of each channel.

GE-Adapter (arXiv 2501.04606) 3.2, Eqs. (9)-(11): the spatial filter of the SCD blocks, applied to
the noisy latent of an inversion step. Also the filter along frames of the released code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from scipy.special import lambertw
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.methods.pairwise_mean import window_mean, work_dtype

BORDERS = ("reflect", "truncate")
UNITS = ("std", "absolute")


def bilateral_filter(
    z: Float[Tensor, "f c h w"],
    kernel_size: int,
    sigma_spatial: float,
    sigma_intensity: float,
    border: str = "reflect",
) -> Float[Tensor, "f c h w"]:
    """Replace each site by a mean of its window, weighted by nearness in place and in value.

    O_x = sum_y w_xy I_y / sum_y w_xy, w_xy = exp(-|x - y|^2 / 2 sigma_spatial^2)
    exp(-(I_x - I_y)^2 / 2 sigma_intensity^2), Eqs. (9)-(11), GE-Adapter 3.2.

    kernel_size: side of the window in sites, odd.
    sigma_spatial: in sites; may be infinite.
    sigma_intensity: in the units of z (`BilateralSettings` takes standard deviations); may be
        infinite.
    border: "reflect" mirrors the image without repeating its edge; "truncate" cuts the window at
        the edge.
    Half precision is computed in float32. Only first derivatives exist.
    Raises InputError for an even window, one that reflection cannot fill, sigmas <= 0, NaN.
    """
    check_window(kernel_size, sigma_spatial, sigma_intensity, border)
    _check("z", z)
    return _over_sites(z, kernel_size, sigma_spatial, sigma_intensity, border)


def _over_sites(
    z: Tensor, kernel_size: int, sigma_spatial: float, sigma_intensity: float, border: str
) -> Tensor:
    """`bilateral_filter` of values that are known to be finite."""
    _, _, h, w = z.shape
    check_reflection("z", "sites", min(h, w), kernel_size, border)
    radius = (kernel_size // 2, kernel_size // 2)
    planes = z.reshape(-1, 1, h, w)
    return window_mean(planes, 0, radius, sigma_spatial, sigma_intensity, border).view(z.shape)


def bilateral_filter_frames(
    x: Float[Tensor, " f *rest"],
    kernel_size: int,
    sigma_spatial: float,
    sigma_intensity: float,
    border: str = "reflect",
) -> Float[Tensor, " f *rest"]:
    """Filter along frames alone: average each value with the same site of neighbouring frames.

    sigma_spatial: in frames. Other arguments as in `bilateral_filter`.
    The released code filters the outputs of attn1 in up_blocks[3] in this way, with window 5 and
    both sigmas 1. GE-Adapter 3.2 does not mention it.
    """
    check_window(kernel_size, sigma_spatial, sigma_intensity, border)
    _check("x", x)
    return _over_frames(x, kernel_size, sigma_spatial, sigma_intensity, border)


def _over_frames(
    x: Tensor, kernel_size: int, sigma_spatial: float, sigma_intensity: float, border: str
) -> Tensor:
    """`bilateral_filter_frames` of values that are known to be finite."""
    check_reflection("x", "frames", len(x), kernel_size, border)
    plane, radius = x.reshape(1, 1, len(x), -1), (kernel_size // 2, 0)
    return window_mean(plane, 3, radius, sigma_spatial, sigma_intensity, border).view(x.shape)


@dataclass(frozen=True)
class BilateralSettings:
    """The spatial filter of an inversion, step by step: `settings(z, fraction)` filters z.

    kernel_size, sigma_spatial: in sites.
    sigma_intensity: in units of `unit`.
    unit: "std" is the population standard deviation over all frames, channels and sites of the
        latent, so that every frame is filtered alike; no gradient flows through it. "absolute" is
        the unit of the latent. With "std" a difference of two clips grows in its largest site by up
        to 2.658 (3 taps), 4.428 (3x3) or 4.972 (5x5), at sigmas of 1; theory/README.md, B9.
    schedule: factor of sigma_intensity at a fraction of the steps, from 0 (first) to 1 (last). A
        factor of 0 leaves the latent unchanged. None is a factor of 1 at every step.
    """

    kernel_size: int = 5
    sigma_spatial: float = 1.0
    sigma_intensity: float = 1.0
    unit: str = "std"
    border: str = "reflect"
    schedule: Callable[[float], float] | None = None

    def __post_init__(self):
        check_window(self.kernel_size, self.sigma_spatial, self.sigma_intensity, self.border)
        chosen_from("unit", self.unit, UNITS)

    def factor(self, fraction: float) -> float:
        """Factor of sigma_intensity at this fraction of the steps."""
        factor = 1.0 if self.schedule is None else float(self.schedule(fraction))
        if not factor >= 0:
            raise InputError(
                f"The sigma schedule gives {factor} at fraction {fraction}: let it give a factor "
                "of 0 or more."
            )
        return factor

    def intensity(self, z: Float[Tensor, "..."], fraction: float = 0.0) -> float:
        """sigma_intensity at this fraction of the steps, in the units of z."""
        factor, unit = self.factor(fraction), 1.0
        if self.unit == "std":
            unit = float(z.detach().to(work_dtype(z)).std(correction=0))
        # Either of them 0: nothing is smoothed. The product could be infinity times 0, NaN.
        return self.sigma_intensity * factor * unit if factor and unit else 0.0

    def __call__(
        self, z: Float[Tensor, "f c h w"], fraction: float = 0.0
    ) -> Float[Tensor, "f c h w"]:
        return self._filtered(bilateral_filter, _over_sites, z, fraction)

    def along_frames(
        self, x: Float[Tensor, " f *rest"], fraction: float = 0.0
    ) -> Float[Tensor, " f *rest"]:
        """Filter along frames with the same settings; sigma_spatial is then in frames."""
        return self._filtered(bilateral_filter_frames, _over_frames, x, fraction)

    def _filtered(self, run: Callable, run_unchecked: Callable, z: Tensor, fraction: float):
        if not z.is_cpu:
            return self._without_waiting(run_unchecked, z, fraction)
        sigma = self.intensity(z, fraction)
        if sigma == 0:
            return z
        return run(z, self.kernel_size, self.sigma_spatial, sigma, self.border)

    def _without_waiting(self, run: Callable, z: Tensor, fraction: float) -> Tensor:
        """The same on a device, where asking for the deviation or for NaN would wait for it.

        z is divided by its deviation, filtered, and multiplied again. NaN stays NaN.
        """
        sigma = self.sigma_intensity * self.factor(fraction)
        if sigma == 0:
            return z
        unit = z.new_ones((), dtype=work_dtype(z))
        if self.unit == "std":
            deviation = z.detach().to(unit.dtype).std(correction=0)
            unit = deviation.where(deviation != 0, unit)
        filtered = run(z / unit, self.kernel_size, self.sigma_spatial, sigma, self.border)
        return (filtered * unit).to(z.dtype)


def neighbour_mass(kernel_size: int, sigma_spatial: float, n_axes: int = 2) -> float:
    """S: sum of a full window's spatial weights without the centre; n_axes is 1 along frames."""
    radius = kernel_size // 2
    far_off = [i / sigma_spatial for i in range(-radius, radius + 1)]
    line = sum(math.exp(-q * q / 2) for q in far_off)
    return line**n_axes - 1


def bias_bound(mass: float, sigma_intensity: float) -> float:
    """Largest |B(x) - x| of a site over all images: b(S) sigma_intensity, where S is the mass.

    b = u - 1/u, u = sqrt(1 + 2 W(S / (2 sqrt e))), W Lambert's function. Attained where all
    neighbours differ from the centre by u sigma_intensity.
    """
    u = math.sqrt(1 + 2 * float(lambertw(mass / (2 * math.sqrt(math.e))).real))
    return (u - 1 / u) * sigma_intensity


def lipschitz_bound(mass: float) -> float:
    """Lipschitz constant of B in the maximum norm: 1 + 4 W(S e^(-3/2)), where S is the mass.

    Attained where half of the window lies above the centre and half below, each by
    sigma_intensity sqrt(3 + 2 W). The constant does not depend on sigma_intensity, but needs it to
    be fixed. `BilateralSettings` with unit "std" has a larger one: sigma moves with the image.
    """
    return 1 + 4 * float(lambertw(mass * math.exp(-1.5)).real)


def check_window(kernel_size: int, sigma_spatial: float, sigma_intensity: float, border: str):
    """Refuse an even window, sigmas <= 0 and an unknown border."""
    if kernel_size < 1 or kernel_size % 2 != 1:
        raise InputError(f"kernel_size is {kernel_size}: give a positive odd number.")
    for name, sigma in (("sigma_spatial", sigma_spatial), ("sigma_intensity", sigma_intensity)):
        if not sigma > 0:
            raise InputError(f"{name} is {sigma}: give a positive number.")
    chosen_from("border", border, BORDERS)


def _check(name: str, x: Tensor):
    if not x.is_floating_point() or not x.numel():
        raise InputError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}: give a floating-point tensor that is "
            "not empty."
        )
    low, high = x.detach().aminmax()
    if not (low.isfinite() & high.isfinite()):
        raise InputError(f"{name} holds NaN or infinity: filter it where it is still finite.")


def check_reflection(name: str, what: str, n: int, kernel_size: int, border: str):
    """Refuse a window that reflection at the border cannot fill."""
    if border == "reflect" and kernel_size // 2 >= n:
        raise InputError(
            f"A window of {kernel_size} does not fit {n} {what} of {name} by reflection: give at "
            f"least {kernel_size // 2 + 1}, a smaller window, or the border 'truncate'."
        )
