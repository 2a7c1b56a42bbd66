"""VALA's assignment: the bound, its symmetries, the planted truth, the degenerate clips."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from vala_research import InputError
from vala_research.methods import anchors as vala
from vala_research.methods.anchors import AnchorSettings, assign_anchors
from vala_research.methods.compression import compression_weights
from vala_research.methods.contrastive import frame_summaries, info_nce, refined
from vala_research.methods.keyframes import propagation_distortion
from vala_research.methods.mixture import fitted, from_sums, maximised

PLAIN = AnchorSettings(n_anchors=4, coreset=0, contrastive_weight=0.0)


def planted(k: int = 3, f: int = 6, n: int = 20, d: int = 8, noise: float = 0.1, seed: int = 0):
    """Tokens around k random directions, and which direction each came from."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(k, d, generator=generator, dtype=torch.float64), dim=-1)
    label = torch.randint(k, (f, n), generator=generator)
    spread = noise * torch.randn(f, n, d, generator=generator, dtype=torch.float64)
    return centres[label] + spread, label


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
def test_the_bound_never_decreases(seed, noise):
    x, _ = planted(noise=noise, seed=seed)
    trace = assign_anchors(x, replace(PLAIN, n_anchors=6, tolerance=-1.0, max_sweeps=30)).objective
    assert len(trace) == 30
    assert min(b - a for a, b in pairwise(trace)) > -1e-9  # rounding of 120 tokens' sum


def test_the_m_step_is_the_maximum_of_the_bound():
    """Any other direction, count or concentration lowers it, so monotony is no accident."""
    x, label = planted(noise=0.3)
    u = vala.unit_tokens(x).flatten(0, 1)
    r = 0.8 * F.one_hot(label.flatten(), 3).double().T + 0.2 / 3

    def bound(m):
        expected = (r * m.logits(u)).sum() + torch.special.entr(r).sum()
        return expected.item() - m.divergence()

    best = maximised(r, u, PLAIN.dirichlet)
    for _ in range(20):  # certainties and concentrations settle on each other
        best = from_sums(r.sum(1), r @ u, best.concentrations, PLAIN.dirichlet)
    turned = F.normalize(best.directions + 0.05 * best.directions.roll(1, 0), dim=-1)
    for other in (
        replace(best, concentrations=1.1 * best.concentrations),
        replace(best, concentrations=0.9 * best.concentrations),
        replace(best, certainties=1.5 * best.certainties),
        replace(best, certainties=0.7 * best.certainties),
        replace(best, counts=best.counts * 1.1),
        replace(best, directions=turned),
    ):
        assert bound(other) < bound(best) - 1e-4


def test_planted_directions_are_found_and_the_rest_dropped():
    x, label = planted(noise=0.1, n=40)
    found = assign_anchors(x, replace(PLAIN, n_anchors=8))
    assert found.n_effective == 3
    chosen = found.responsibilities.argmax(-1)
    pairs = {(int(a), int(b)) for a, b in zip(chosen.flatten(), label.flatten(), strict=True)}
    assert len(pairs) == 3
    assert found.entropy.mean() < 0.01
    assert found.weights.sum().item() == pytest.approx(1)
    assert found.weights.tolist() == sorted(found.weights.tolist(), reverse=True)


def test_responsibilities_sum_to_one():
    x, _ = planted(noise=1.0)
    for settings in (PLAIN, replace(PLAIN, contrastive_weight=1.0, refinement_steps=3)):
        r = assign_anchors(x, settings).responsibilities
        assert torch.allclose(r.sum(-1), torch.ones_like(r[..., 0]), atol=1e-12)


def test_the_scale_of_a_token_does_not_matter():
    x, _ = planted(noise=0.5)
    scale = torch.rand(*x.shape[:2], 1, dtype=x.dtype) * 10 + 0.01
    a, b = assign_anchors(x, PLAIN), assign_anchors(scale * x, PLAIN)
    assert torch.allclose(a.responsibilities, b.responsibilities, atol=1e-8)
    moved = assign_anchors(x + 1.0, PLAIN)  # another direction is another result
    assert not torch.allclose(a.summaries.sum(1), moved.summaries.sum(1), atol=1e-2)


@pytest.mark.parametrize("coreset", [0, 60])
def test_frames_and_basis_may_be_exchanged(coreset):
    x, _ = planted(noise=0.3)
    settings = replace(PLAIN, coreset=coreset, n_keyframes=2)
    base = assign_anchors(x, settings)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = assign_anchors(x[order], settings)
    assert torch.allclose(permuted.responsibilities, base.responsibilities[order], atol=1e-6)
    assert sorted(order[permuted.keyframes].tolist()) == base.keyframes
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    turned = assign_anchors(x @ q, settings)
    assert torch.allclose(turned.responsibilities, base.responsibilities, atol=1e-6)
    assert torch.allclose(turned.directions, base.directions @ q, atol=1e-6)


def test_a_coreset_finds_what_all_tokens_find():
    x, label = planted(n=400, noise=0.15)
    whole, part = (assign_anchors(x, replace(PLAIN, n_anchors=3, coreset=c)) for c in (0, 120))
    assert torch.allclose(whole.directions, part.directions, atol=1e-3)
    assert part.objective[-1] == pytest.approx(whole.objective[-1], abs=1e-3)
    assert part.objective[-1] > part.objective[0] + 0.1  # what the sweep over all tokens adds


def test_one_frame_identical_frames_and_more_anchors_than_tokens():
    x, _ = planted(f=1)
    assert assign_anchors(x, PLAIN).keyframes == [0]
    same = assign_anchors(x.expand(5, -1, -1), PLAIN)
    assert torch.allclose(same.responsibilities[0], same.responsibilities[4])
    assert torch.isfinite(same.concentrations).all()
    few = assign_anchors(x[:, :2], replace(PLAIN, n_anchors=50))
    assert few.responsibilities.shape[-1] <= 2
    constant = assign_anchors(torch.ones(4, 9, 3), PLAIN)
    assert constant.n_effective == 1 and constant.keyframes == [0]


def test_half_precision_features_are_welcome():
    x, label = planted(noise=0.1)
    found = assign_anchors(x.half(), PLAIN)
    assert found.responsibilities.dtype == torch.float32 and found.n_effective == 3


# The contrastive refinement.


def test_info_nce_prefers_anchors_that_persist():
    e = torch.eye(3, dtype=torch.float64)
    mass = torch.ones(4, 3, dtype=torch.float64)
    steady = info_nce(e.expand(4, 3, 3), mass, 0.1)
    swapping = info_nce(torch.stack([e, e.roll(1, 0), e, e.roll(1, 0)]), mass, 0.1)
    assert steady < 1e-3 < 5 < swapping
    absent = mass.clone()
    absent[:, 1:] = 0  # one anchor alone has no negatives
    assert info_nce(torch.stack([e, -e, e, -e]), absent, 0.1) == 0


def test_refinement_lowers_its_objective_and_starts_as_the_identity():
    x, _ = planted(noise=0.6)
    u = vala.unit_tokens(x)
    tokens, a0 = u.flatten(0, 1), PLAIN.dirichlet
    mixture, _ = fitted(tokens, PLAIN.n_anchors, a0, PLAIN.max_sweeps, PLAIN.tolerance)
    logits = mixture.logits(tokens).T.unflatten(0, u.shape[:2])
    temperature = 1 / mixture.concentrations.mean().item()

    def objective(q):
        bound = ((q * logits).sum(-1) + torch.special.entr(q).sum(-1)).mean()
        return (info_nce(frame_summaries(u, q), q.sum(1), temperature) - bound).item()

    def run(steps):
        generator = torch.Generator().manual_seed(0)
        return refined(u, logits, mixture.concentrations, 1.0, steps, generator)

    assert torch.allclose(run(0), logits.softmax(-1), rtol=1e-12, atol=0)
    assert objective(run(30)) < objective(run(0))


def test_refinement_survives_posteriors_that_underflow_and_anchors_that_nobody_holds():
    """entr(q) has an infinite slope at q = 0; 300 anchors hold less than 1% of a frame each."""
    x, _ = planted(noise=0.6)
    u = vala.unit_tokens(x)
    generator = torch.Generator().manual_seed(0)
    for logits in (torch.zeros(*u.shape[:2], 3), torch.zeros(*u.shape[:2], 300)):
        logits = logits.to(u)
        if logits.shape[-1] == 3:
            logits[..., 1] = -2000
        kappa = torch.full((logits.shape[-1],), 5.0, dtype=u.dtype)
        q = refined(u, logits, kappa, 1.0, 5, generator)
        assert torch.isfinite(q).all() and torch.allclose(q.sum(-1), torch.ones_like(q[..., 0]))


# Key frames.


def test_vala_reads_nothing_but_the_anchors():
    x, _ = planted(n=30)
    found = assign_anchors(x, replace(PLAIN, n_keyframes=2))
    assert found.keyframes == vala.covering_frames(found, 2)
    assert vala.select_keyframes(x, 2, settings=PLAIN) == found.keyframes


def test_key_frames_cover_the_shots():
    """Three shots of unequal length, one direction each: one key frame in each shot."""
    generator = torch.Generator().manual_seed(1)
    shots = [0, 0, 0, 0, 0, 1, 2, 2]
    frames = torch.stack(
        [F.normalize(torch.randn(8, generator=generator), dim=0) for _ in range(3)]
    )
    x = frames[shots][:, None].repeat(1, 10, 1)
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    for method in ("vala", "kmeans", "kmedoids", "optimal"):
        chosen = vala.select_keyframes(x, 3, method)
        assert sorted(shots[i] for i in chosen) == [0, 1, 2], method
    assert sorted(shots[i] for i in vala.select_keyframes(x, 3, "uniform")) != [0, 1, 2]
    assert propagation_distortion(x, [0, 5, 6]) < 0.1 * propagation_distortion(x, [0, 1, 2])


def test_optimal_is_optimal_and_kmedoids_close():
    x, _ = planted(noise=1.0, f=8)
    best = propagation_distortion(x, vala.select_keyframes(x, 3, "optimal"))
    others = [vala.select_keyframes(x, 3, "random", torch.Generator().manual_seed(i))
              for i in range(30)]  # fmt: skip
    assert all(best <= propagation_distortion(x, s) + 1e-9 for s in others)
    assert best <= propagation_distortion(x, vala.select_keyframes(x, 3, "kmedoids")) + 1e-9
    assert propagation_distortion(x, list(range(8))) == 0
    assert vala.select_keyframes(x, 3, "first") == [0, 1, 2]


# Compression.


@pytest.mark.parametrize("n_tokens", [24, 6])
def test_compression_weights_are_means(n_tokens):
    x, _ = planted(f=5, n=24)
    found = assign_anchors(x, PLAIN)
    site = compression_weights(found, (4, 6), n_tokens)
    assert site.shape == (len(found.weights), 5, n_tokens)
    assert torch.allclose(site.sum(1), torch.ones_like(site[:, 0]))
    token = compression_weights(replace(found, granularity="token"), (4, 6), n_tokens)
    assert torch.allclose(token.sum((1, 2)), torch.ones_like(token[:, 0, 0]))


def test_a_layer_that_does_not_fit_is_named():
    x, _ = planted(f=2, n=24)
    with pytest.raises(InputError, match="layer of 7 tokens does not fit anchors of 24"):
        compression_weights(assign_anchors(x, PLAIN), (4, 6), 7)


# Bad input.


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(0, 4, 3), "none of them zero"),
        (torch.full((2, 4, 3), torch.nan), "NaN or infinity"),
        (torch.cat([torch.ones(2, 3, 3), torch.zeros(2, 1, 3)], 1), "2 feature tokens are zero"),
    ],
)
def test_bad_features_are_named(features, message):
    with pytest.raises(InputError, match=message):
        assign_anchors(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_anchors": 0}, "n_anchors is 0"),
        ({"dirichlet": 0.0}, "dirichlet is 0"),
        ({"granularity": "frame"}, "Unknown granularity 'frame'"),
        ({"refinement_steps": -1}, "refinement_steps is -1"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        AnchorSettings(**change)


def test_bad_key_frame_requests_are_named():
    x, _ = planted()
    with pytest.raises(InputError, match="7 key frames of 6"):
        vala.select_keyframes(x, 7)
    with pytest.raises(InputError, match="Unknown key frame method 'best'"):
        vala.select_keyframes(x, 2, "best")
    with pytest.raises(InputError, match="too many to enumerate"):
        vala.select_keyframes(torch.randn(40, 2, 3), 10, "optimal")


def test_a_clip_of_thousands_of_frames_has_the_anchors_of_its_part():
    """Two textures, the first at the sites that come first: no few sites stand for a clip."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    place = (torch.arange(48) >= 16).long()
    noise = torch.randn(60, 48, 4, generator=generator)
    part = centres[place] + torch.tensor([0.002, 0.3])[place][:, None] * noise
    short = assign_anchors(part, AnchorSettings(n_anchors=2))
    long = assign_anchors(part.repeat(50, 1, 1), AnchorSettings(n_anchors=2))
    assert torch.isfinite(long.responsibilities).all()
    torch.testing.assert_close(long.directions, short.directions, atol=0.02, rtol=0)
    torch.testing.assert_close(long.weights, short.weights, atol=0.02, rtol=0)
    assert len(long.keyframes) == 2
