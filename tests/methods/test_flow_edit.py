"""FlowEdit in clean estimates is FlowEdit as published, in both paths; no network, under 1 s."""

from math import sqrt

import pytest
import torch

from vala_research.methods.flow_edit import flow_level, moved_difference, paired_states

SOURCE, TARGET = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([-1.0, 0.5, 3.0])


def denoised(z, mean, a: float, b: float, spread: float = 0.7):
    """The exact clean estimate of data N(mean, spread^2) at z = a x0 + b n."""
    return mean + a * spread**2 / (a**2 * spread**2 + b**2) * (z - a * mean)


def published(clip, noises, levels):
    """FlowEdit in velocities, as its paper writes it; analytic velocities of two Gaussians."""
    z = clip.clone()
    for s, s_next, noise in zip(levels, levels[1:], noises, strict=False):
        z_src = (1 - s) * clip + s * noise
        z_tar = z + z_src - clip
        v_src, v_tar = (
            (state - denoised(state, mean, 1 - s, s)) / s
            for state, mean in ((z_src, SOURCE), (z_tar, TARGET))
        )
        z = z + (s_next - s) * (v_tar - v_src)
    return z


def ours(clip, noises, levels, pairs):
    """FlowEdit in differences of clean estimates, at states a x0 + b n."""
    difference = torch.zeros_like(clip)
    for i, noise in enumerate(noises):
        a, b = pairs[i]
        z_src, z_tar = paired_states(clip, difference, noise, a, b)
        clean = denoised(z_tar, TARGET, a, b) - denoised(z_src, SOURCE, a, b)
        difference = moved_difference(difference, clean, levels[i], levels[i + 1])
    return clip + difference


@pytest.fixture
def walk():
    generator = torch.Generator().manual_seed(0)
    levels = torch.linspace(0.9, 0, 12, dtype=torch.float64).tolist()
    clip = SOURCE.double() + 0.7 * torch.randn(3, generator=generator, dtype=torch.float64)
    noises = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    return clip, noises, levels


def test_it_is_the_published_edit_for_a_flow_model(walk):
    clip, noises, levels = walk
    edit = ours(clip, noises, levels, [(1 - s, s) for s in levels])
    assert torch.allclose(edit, published(clip, noises, levels), atol=1e-12)
    assert (edit - clip).norm() > 1  # an edit at all


def test_a_diffusion_model_of_the_same_data_makes_the_same_edit(walk):
    """The change of variables is exact: both paths see one denoiser at equal signal to noise."""
    clip, noises, levels = walk
    pairs = [(1 - s, s) for s in levels]
    preserving = [(a / sqrt(a * a + b * b), b / sqrt(a * a + b * b)) for a, b in pairs]
    assert [flow_level(*pair) for pair in preserving] == pytest.approx(levels)
    one, two = ours(clip, noises, levels, pairs), ours(clip, noises, levels, preserving)
    assert torch.allclose(one, two, atol=1e-12)


def test_without_the_factor_of_the_difference_the_paths_disagree(walk):
    """A wrong answer fails: adding the difference unscaled, or scaled by the signal alone."""
    clip, noises, levels = walk
    s, noise = levels[3], noises[0]
    a, b = ((1 - s) / sqrt(s * s + (1 - s) ** 2), s / sqrt(s * s + (1 - s) ** 2))
    difference = TARGET - clip
    _, right = paired_states(clip, difference, noise, a, b)
    flow = paired_states(clip, difference, noise, 1 - s, s)[1]
    assert torch.allclose(right / (a + b), flow, atol=1e-12)
    for wrong in (1.0, a):
        assert not torch.allclose((right + (wrong - a - b) * difference) / (a + b), flow, atol=1e-3)


def test_the_last_step_is_the_clean_difference_and_zeta_pulls_back():
    before, clean = torch.ones(3), torch.tensor([0.0, 2.0, 4.0])
    assert torch.equal(moved_difference(before, clean, 0.3, 0.0), clean)
    assert torch.equal(moved_difference(before, clean, 0.3, 0.3), before)
    pulled = moved_difference(before, clean, 0.4, 0.2, zeta=0.1)
    assert torch.allclose(pulled, moved_difference(before, clean, 0.4, 0.2) - 0.1 * clean)
