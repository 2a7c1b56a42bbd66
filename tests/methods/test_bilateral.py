"""The bilateral filter equals its definition, keeps its bounds, and unfolds no window."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from vala_research import InputError
from vala_research.evaluation.memory import LiveTensors
from vala_research.methods.bilateral import (
    BilateralSettings,
    bias_bound,
    bilateral_filter,
    bilateral_filter_frames,
    lipschitz_bound,
    neighbour_mass,
)


def noise(*shape, seed=0, dtype=torch.float64):
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.to(dtype)


def mirrored(i, n, border):
    """Where index i of an axis of n is found; None outside of a truncated image."""
    if 0 <= i < n:
        return i
    return None if border == "truncate" else (-i if i < 0 else 2 * (n - 1) - i)


def brute_force(z, radius, sigma_spatial, sigma_intensity, border):
    """Eqs 9-11, literally: for every site, over every neighbour."""
    out, (h, w), (rh, rw) = torch.empty_like(z), z.shape[2:], radius
    for f, c, y, x in itertools.product(*map(range, z.shape)):
        top = bottom = 0.0
        for dy, dx in itertools.product(range(-rh, rh + 1), range(-rw, rw + 1)):
            v, u = mirrored(y + dy, h, border), mirrored(x + dx, w, border)
            if v is None or u is None:
                continue
            d = float(z[f, c, v, u] - z[f, c, y, x])
            weight = math.exp(-(dy**2 + dx**2) / (2 * sigma_spatial**2))
            weight *= math.exp(-(d**2) / (2 * sigma_intensity**2))
            top, bottom = top + weight * float(z[f, c, v, u]), bottom + weight
        out[f, c, y, x] = top / bottom
    return out


# A window of 9 or 11 is larger than half of the image; 11 is the largest that 6 sites can mirror.
@pytest.mark.parametrize("border", ["reflect", "truncate"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9, 11])
def test_equals_its_definition(kernel_size, border):
    z, radius = noise(2, 2, 6, 7), (kernel_size // 2,) * 2
    found = bilateral_filter(z, kernel_size, 1.3, 0.7, border)
    expected = brute_force(z, radius, 1.3, 0.7, border)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    if kernel_size > 1:
        other = {"reflect": "truncate", "truncate": "reflect"}[border]
        for wrong in (bilateral_filter(z, kernel_size, 1.3, 0.7, other),
                      bilateral_filter(z, kernel_size, 1.2, 0.7, border),
                      bilateral_filter(z, kernel_size, 1.3, 0.6, border)):  # fmt: skip
            assert (wrong - expected).abs().max() > 1e-3


def test_a_truncated_window_may_be_larger_than_the_image():
    z = noise(1, 1, 3, 2)
    assert torch.allclose(
        bilateral_filter(z, 9, 2.0, 0.5, "truncate"), brute_force(z, (4, 4), 2.0, 0.5, "truncate"),
        rtol=0, atol=1e-14,
    )  # fmt: skip


@pytest.mark.parametrize("border", ["reflect", "truncate"])
@pytest.mark.parametrize(("kernel_size", "n_frames"), [(3, 2), (5, 3), (5, 8)])
def test_along_frames_equals_its_definition(kernel_size, n_frames, border):
    x = noise(n_frames, 3, 2)
    found = bilateral_filter_frames(x, kernel_size, 0.9, 0.6, border)
    columns = x.reshape(1, 1, n_frames, -1)
    expected = brute_force(columns, (kernel_size // 2, 0), 0.9, 0.6, border).view(x.shape)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    # One series alone: exp of a vector and of a single number may differ in the last digit.
    alone = bilateral_filter_frames(x[:, 0, 0], kernel_size, 0.9, 0.6, border)
    assert torch.allclose(alone, found[:, 0, 0], rtol=0, atol=2e-15)


def test_pieces_do_not_show(monkeypatch):
    """However the planes are cut into pieces, the last one being shorter."""
    from vala_research.methods import pairwise_mean

    z = noise(5, 2, 8, 6)
    whole = bilateral_filter(z, 5, 1.0, 0.5), bilateral_filter_frames(z, 5, 1.0, 0.5)
    monkeypatch.setattr(pairwise_mean, "_piece_length", lambda x, *_: 3)
    for border in ("reflect", "truncate"):
        cut = bilateral_filter(z, 5, 1.0, 0.5, border)
        assert torch.allclose(cut, brute_force(z, (2, 2), 1.0, 0.5, border), atol=1e-14)
    for again, expected in zip(
        (bilateral_filter(z, 5, 1.0, 0.5), bilateral_filter_frames(z, 5, 1.0, 0.5)), whole,
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(again, expected, rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(
        lambda v: bilateral_filter(v, 3, 1.0, 0.5), noise(2, 2, 3, 3).requires_grad_()
    )


def test_small_images_are_not_cut_into_many_pieces(monkeypatch):
    """64 images of 5 x 5 sites are two pieces of work, each of 50 images."""
    from vala_research.methods.pairwise_mean import _Window

    made, shift = [], _Window.shift
    monkeypatch.setattr(_Window, "shift", lambda self, x: made.append(len(x)) or shift(self, x))
    bilateral_filter(noise(64, 1, 5, 5), 5, 1.0, 0.5)
    assert made == [50, 14]


def test_without_an_intensity_scale_it_is_the_gaussian_blur():
    z = noise(3, 4, 9, 8)
    g = torch.exp(-(torch.arange(-2.0, 3, dtype=torch.float64) ** 2) / 2)
    kernel = (g[:, None] * g / g.sum() ** 2).expand(4, 1, 5, 5)
    blurred = F.conv2d(F.pad(z, (2, 2, 2, 2), mode="reflect"), kernel, groups=4)
    assert torch.allclose(bilateral_filter(z, 5, 1.0, math.inf), blurred, rtol=0, atol=1e-14)
    assert (bilateral_filter(z, 5, 1.0, 3.0) - blurred).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_limits_in_every_precision(dtype):
    """sigma_intensity to 0 is the identity, and a constant image is fixed: to the last bit."""
    z = noise(3, 2, 8, 8, dtype=dtype)
    constant = torch.full_like(z, 1 / 3)
    for border in ("reflect", "truncate"):
        for tiny in (1e-8, 1e-300):
            assert torch.equal(bilateral_filter(z, 5, 1.0, tiny, border), z)
        for sigma in (1e-300, 1.0, math.inf):
            assert torch.equal(bilateral_filter(constant, 5, 1.0, sigma, border), constant)
    assert torch.equal(bilateral_filter(z, 5, 1e-300, 1.0), z)
    assert torch.equal(bilateral_filter_frames(z, 3, 1.0, 1e-8), z)
    found = bilateral_filter(z, 5, 1.0, 0.5)
    assert found.dtype == dtype
    exact = bilateral_filter(z.double(), 5, 1.0, 0.5)
    assert (found - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("border", ["reflect", "truncate"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, math.inf])
def test_gradients_equal_finite_differences(sigma, border):
    z = noise(2, 1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: bilateral_filter(v, 5, 1.0, sigma, border), z)
    x = noise(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: bilateral_filter_frames(v, 5, 1.0, sigma, border), x)


def test_gradient_of_the_identity_limit_is_finite():
    for dtype in (torch.float16, torch.float32, torch.float64):
        z = noise(1, 1, 6, 6, dtype=dtype).requires_grad_()
        bilateral_filter(z, 5, 1.0, 1e-8).sum().backward()
        assert torch.equal(z.grad, torch.ones_like(z))


# S of a full window and the filter's constants, from the definition of Lambert's W.
WINDOWS = [(3, 1.0), (3, 2.0), (5, 1.0), (5, 2.0)]


@pytest.mark.parametrize(("kernel_size", "sigma_spatial"), WINDOWS)
def test_bias_keeps_its_bound_and_attains_it(kernel_size, sigma_spatial):
    """max |B(x) - x| <= b(S) sigma: for random images, under ascent; one pixel attains it."""
    mass, sigma = neighbour_mass(kernel_size, sigma_spatial), 0.4
    bound = bias_bound(mass, sigma)
    shift = lambda z: (bilateral_filter(z, kernel_size, sigma_spatial, sigma) - z).abs()  # noqa: E731
    n = 2 * kernel_size
    for scale in (0.1, 0.5, 1.0, 4.0):
        assert shift(scale * noise(8, 2, n, n)).max() <= bound
    z = (sigma * noise(16, 1, n, n)).requires_grad_()  # sixteen climbers
    climb = torch.optim.Adam([z], lr=0.02)
    for _ in range(200):
        climb.zero_grad()
        (-shift(z)[..., n // 2, n // 2].sum()).backward()
        climb.step()
    climbed = shift(z).max().item()
    assert 0.95 * bound <= climbed <= bound * (1 + 1e-12)
    pixel = torch.zeros(1, 1, n, n, dtype=torch.float64)
    w = bound / sigma
    pixel[..., n // 2, n // 2] = sigma * (w + math.sqrt(w**2 + 4)) / 2  # u: u - 1/u = b
    assert shift(pixel).max().item() == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(("kernel_size", "sigma_spatial"), WINDOWS)
def test_lipschitz_constant_holds_and_is_attained(kernel_size, sigma_spatial):
    """|B(x) - B(y)| <= L |x - y| in the largest site, whatever sigma_intensity; never below 1."""
    bound, sigma, n = lipschitz_bound(neighbour_mass(kernel_size, sigma_spatial)), 0.4, kernel_size
    run = lambda z: bilateral_filter(z, kernel_size, sigma_spatial, sigma)  # noqa: E731

    def row_sum(z):
        """Absolute row sum of the Jacobian at the central site: its norm in the largest site."""
        z = z.clone().requires_grad_()
        return torch.autograd.grad(run(z)[..., n // 2, n // 2].sum(), z)[0].abs().sum().item()

    for seed, scale in itertools.product(range(10), (0.3, 0.8, 2.0)):
        assert row_sum(scale * noise(1, 1, n, n, seed=seed)) <= bound
    # Ascent on a finite difference: x + h tanh v is nowhere further than h from x.
    x, v, h = (sigma * noise(64, 1, n, n)).requires_grad_(), noise(64, 1, n, n, seed=1), 1e-3
    climb = torch.optim.Adam([x, v.requires_grad_()], lr=0.12)
    for _ in range(80):
        climb.zero_grad()
        gap = (run(x + h * v.tanh()) - run(x))[..., n // 2, n // 2] / h
        (-gap.sum()).backward()
        climb.step()
    assert 0.9 * bound <= gap.max().item() <= bound * (1 + 1e-9)
    # Two equal halves of the window, above and below its centre, attain it.
    delta = sigma * math.sqrt(3 + (bound - 1) / 2)
    sites = torch.arange(n * n, dtype=torch.float64) - n * n // 2
    assert row_sum((delta * sites.sign()).view(1, 1, n, n)) == pytest.approx(bound, rel=1e-9)


def test_along_frames_the_bounds_are_those_of_one_axis():
    """One deviating frame is shifted by b(S) sigma exactly; two of them suffice for L."""
    mass, sigma = neighbour_mass(3, 1.0, n_axes=1), 0.4
    bias, stretch = bias_bound(mass, sigma), lipschitz_bound(mass)
    w, delta = bias / sigma, sigma * math.sqrt(3 + (stretch - 1) / 2)
    x = torch.zeros(5, 7, dtype=torch.float64)
    x[2] = sigma * (w + math.sqrt(w**2 + 4)) / 2
    run = lambda v: bilateral_filter_frames(v, 3, 1.0, sigma)  # noqa: E731
    assert (run(x) - x).abs().max().item() == pytest.approx(bias, rel=1e-12)
    line = torch.tensor([-delta, 0.0, delta], dtype=torch.float64).requires_grad_()
    row = torch.autograd.grad(run(line)[1], line)[0]
    assert row.abs().sum().item() == pytest.approx(stretch, rel=1e-9)


def test_it_is_not_non_expansive():
    """What the theory paper claims of the filter (Lemma C.7) is false: bounds of 1 are broken."""
    assert lipschitz_bound(neighbour_mass(3, 1.0, n_axes=1)) == pytest.approx(1.87086, abs=1e-5)
    assert bias_bound(neighbour_mass(3, 1.0, n_axes=1), 1.0) == pytest.approx(0.446, abs=1e-3)
    assert bias_bound(neighbour_mass(5, 2.0), 1.0) == pytest.approx(1.348, abs=1e-3)


def test_settings_count_intensity_in_standard_deviations_of_the_latent():
    z = noise(3, 4, 8, 8)
    sigma = z.std(correction=0).item()
    filtered = BilateralSettings(sigma_intensity=0.5)(z)
    assert torch.equal(filtered, bilateral_filter(z, 5, 1.0, 0.5 * sigma))
    assert torch.allclose(BilateralSettings(sigma_intensity=0.5)(7 * z), 7 * filtered, atol=1e-13)
    assert torch.equal(BilateralSettings(unit="absolute")(7 * z), bilateral_filter(7 * z, 5, 1, 1))
    assert torch.equal(BilateralSettings()(torch.ones_like(z)), torch.ones_like(z))
    assert BilateralSettings(sigma_intensity=math.inf).intensity(torch.ones_like(z)) == 0


def test_the_schedule_scales_intensity_and_zero_leaves_the_latent():
    z = noise(2, 4, 8, 8)
    settings = BilateralSettings(unit="absolute", schedule=lambda fraction: 1 - fraction)
    assert [settings.intensity(z, x) for x in (0, 0.25, 1)] == [1, 0.75, 0]
    assert torch.equal(settings(z, 0.25), bilateral_filter(z, 5, 1.0, 0.75))
    assert torch.equal(settings(z, 1.0), z)
    for bad in (-1.0, math.nan):
        with pytest.raises(InputError, match="schedule gives .* at fraction 0.5"):
            BilateralSettings(schedule=lambda _, bad=bad: bad)(z, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4: give a positive odd"),
        ({"kernel_size": -3}, "kernel_size is -3: give a positive odd"),
        ({"kernel_size": 0}, "kernel_size is 0: give a positive odd"),
        ({"sigma_spatial": 0.0}, "sigma_spatial is 0.0: give a positive"),
        ({"sigma_intensity": -1.0}, "sigma_intensity is -1.0: give a positive"),
        ({"sigma_intensity": math.nan}, "sigma_intensity is nan: give a positive"),
        ({"border": "wrap"}, "Unknown border 'wrap': choose one of reflect, truncate"),
    ],
)
def test_bad_settings_get_one_sentence(change, message):
    good = {"kernel_size": 3, "sigma_spatial": 1.0, "sigma_intensity": 1.0} | change
    for call in (lambda: bilateral_filter(noise(1, 1, 4, 4), **good),
                 lambda: bilateral_filter_frames(noise(4, 4), **good),
                 lambda: BilateralSettings(**good)):  # fmt: skip
        with pytest.raises(InputError, match=message):
            call()


def test_bad_tensors_get_one_sentence():
    z = noise(2, 1, 4, 4)
    for value in (math.nan, math.inf):
        z[0, 0, 1, 1] = value
        with pytest.raises(InputError, match="z holds NaN or infinity"):
            bilateral_filter(z, 3, 1.0, 1.0)
        with pytest.raises(InputError, match="x holds NaN or infinity"):
            bilateral_filter_frames(z, 3, 1.0, 1.0)
    with pytest.raises(InputError, match="window of 9 does not fit 4 sites of z by reflection"):
        bilateral_filter(noise(1, 1, 6, 4), 9, 1.0, 1.0)
    with pytest.raises(InputError, match="window of 5 does not fit 2 frames of x by reflection"):
        bilateral_filter_frames(noise(2, 4), 5, 1.0, 1.0)
    with pytest.raises(InputError, match="z is torch.float64 of shape .*not empty"):
        bilateral_filter(noise(0, 1, 4, 4), 3, 1.0, 1.0)
    with pytest.raises(InputError, match="Unknown unit 'db'"):
        BilateralSettings(unit="db")


def test_memory_is_at_most_four_times_the_input():
    """Beyond the input, the result included: windows are never unfolded (25 copies of it)."""
    for dtype, run in itertools.product(
        (torch.float32, torch.float16), (bilateral_filter, bilateral_filter_frames)
    ):
        for shape in ((32, 4, 64, 64), (4, 4, 32, 32)):
            z = noise(*shape, dtype=dtype)
            with LiveTensors() as live:
                run(z, 5, 1.0, 1.0)
            assert z.nbytes <= live.peak <= 4 * z.nbytes, (dtype, run, live.peak / z.nbytes)
