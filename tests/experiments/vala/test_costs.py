"""Counts of the code that runs, against arithmetic by hand: Stable Diffusion 1.5, 512 x 512."""

import pytest
import torch
from tiny_models import tiny_unet
from torch.utils.flop_counter import FlopCounterMode

from vala_research import InputError
from vala_research.diffusion.attention import AnchorAttention
from vala_research.evaluation.flops import bare_forward, forward_flops, meta_anchors, meta_unet
from vala_research.experiments.vala.assignment_cost import FLOPS_PER_ELEMENT, assignment_flops
from vala_research.experiments.vala.attention_cost import (
    editors,
    flop_table,
    self_attention_layers,
)
from vala_research.methods.anchors import AnchorSettings

N_FRAMES, SIDE = 32, 64
FRAME = 0.803273e12  # FLOPs: 401.6 G multiply-adds, as other counters find
# (layers, tokens, channels) of the self-attention of Stable Diffusion 1.5
LAYERS = ((5, 4096, 320), (5, 1024, 640), (5, 256, 1280), (1, 64, 1280))


@pytest.fixture(scope="module")
def unet():
    return meta_unet()


@pytest.fixture(scope="module")
def rows(unet) -> dict[str, dict]:
    found = editors(N_FRAMES, SIDE, SIDE, n_keyframes=(2,), n_site=(2, 4), n_token=(64, 256))
    return {row["policy"]: row for row in flop_table(unet, found, N_FRAMES, SIDE, SIDE)}


def test_a_frame_costs_what_others_count(unet, rows):
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert rows["own"]["tflop"] * 1e12 == pytest.approx(FRAME, rel=1e-5)


def test_the_layers_are_those_of_the_paper(unet):
    expected = sorted((n, c) for k, n, c in LAYERS for _ in range(k))
    assert sorted(self_attention_layers(unet, SIDE, SIDE)) == expected


def test_ratios_by_hand(rows):
    """FLOPs of attention: two products of n x m x c; 4 n m c for n queries and m keys."""
    attention = sum(4 * k * n * n * c for k, n, c in LAYERS)  # .1225 T, own keys
    per_anchor = sum(4 * k * n * c for k, n, c in LAYERS)  # one more key for every query
    by_hand = {
        "own": 0,
        "first": 0,
        "sparse_causal": attention,
        "extended": (N_FRAMES - 1) * attention,
        "own + 2 key frames": 2 * attention,
        "own + 2 site anchors": 2 * (attention + per_anchor),
        "own + 4 site anchors": 4 * (attention + per_anchor),
        "own + 64 token anchors": 64 * 2 * per_anchor,
        "own + 256 token anchors": 256 * 2 * per_anchor,
    }
    assert set(by_hand) == set(rows)
    for name, more in by_hand.items():
        assert rows[name]["ratio"] == pytest.approx(1 + more / FRAME, rel=1e-5), name
        assert rows[name]["arithmetic"] == pytest.approx(rows[name]["ratio"], rel=1e-9), name


def test_aims(rows):
    """What anchors cost beyond editing frame by frame; extended: 5.73."""
    assert rows["sparse_causal"]["ratio"] == pytest.approx(1.1525, abs=1e-4)
    assert rows["extended"]["ratio"] == pytest.approx(5.727, abs=1e-3)
    assert rows["own + 2 site anchors"]["ratio"] <= 1.35
    assert rows["own + 256 token anchors"]["ratio"] <= 1.03
    assert rows["own + 4 site anchors"]["ratio"] <= rows["extended"]["ratio"] / 3


@pytest.mark.parametrize("name", ["extended", "own + 2 site anchors", "own + 256 token anchors"])
def test_chunks_of_frames_and_branches_change_no_count(unet, name):
    policy = editors(4, SIDE, SIDE)[name].policy
    whole = forward_flops(unet, policy, 4, SIDE, SIDE)
    assert forward_flops(unet, policy, 4, SIDE, SIDE, frames_per_chunk=3) == whole
    assert forward_flops(unet, policy, 4, SIDE, SIDE, n_branches=2) == 2 * whole


def test_compression_is_counted():
    """K tokens see K f n weights for keys and for values: without that the count would be lower."""
    config = dict(tiny_unet().config)
    unet, f, k = meta_unet(config), 4, 8
    policy = AnchorAttention(meta_anchors(f, 64, k, "token"), (8, 8))
    more = forward_flops(unet, policy, f, 8, 8) - forward_flops(unet, "own", f, 8, 8)
    seen = sum(4 * f * n * k * c for n, c in self_attention_layers(unet, 8, 8))
    assert more == 2 * seen


@pytest.mark.parametrize("name", ["own", "extended", "own + 8 site anchors"])
def test_short_cuts_change_no_count(name):
    """Beside torch's own counter on the forward that leaves nothing out."""
    unet, policy = meta_unet(dict(tiny_unet().config)), editors(3, 8, 8)[name].policy
    z = torch.empty(2, 3, 4, 8, 8, device="meta")
    with FlopCounterMode(display=False) as counter:
        bare_forward(unet, policy, z)()
    assert counter.get_total_flops() == forward_flops(unet, policy, 3, 8, 8, n_branches=2) > 0


def test_counts_are_for_the_meta_device():
    with pytest.raises(InputError, match="meta device"):
        forward_flops(tiny_unet(), "own", 1, 8, 8)


def test_one_sweep_of_the_assignment_by_hand():
    """Two products of tokens x anchors x channels a sweep at least; all else counts too."""
    x = torch.randn(4, 512, 16, generator=torch.Generator().manual_seed(0))
    costs = [
        assignment_flops(x, AnchorSettings(4, max_sweeps=n, tolerance=-1.0, coreset=0))
        for n in (2, 3)
    ]
    sweep = costs[1]["products"] - costs[0]["products"]
    product = 2 * 2048 * 4 * 16
    assert 2 * product <= sweep <= 4 * product
    for cost in costs:
        assert cost["elements"] > 2048 * 16  # every token is at least read
        assert cost["flops"] == cost["products"] + FLOPS_PER_ELEMENT * cost["elements"]


@pytest.mark.parametrize("shape", [(32, 4096, 4), (32, 1024, 320)])
def test_the_assignment_is_a_hundredth_of_one_forward(shape):
    """Even on noise, where no structure ends the sweeps early."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    cost = assignment_flops(x, AnchorSettings(max_sweeps=20, tolerance=-1.0))
    assert 0 < cost["flops"] <= 0.01 * N_FRAMES * FRAME
