"""Heads read from a layer make what the layer makes; its bounds hold on them."""

import dataclasses

import pytest
import torch
from tiny_models import D_TEXT, N_TOKENS, tiny_unet, tiny_unet3d

from theory.attention import Comparison, Head, judged
from vala_research import InputError
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.probes import View, feature_maps
from vala_research.experiments.theory.attention_heads import (
    cross_layers,
    head_rows,
    heads,
    layer_queries,
    pairs,
    short_layer,
)
from vala_research.sprites.scene import WORLD


@pytest.fixture(scope="module")
def view() -> View:
    """Two frames of noise in fp64."""
    unet, g = tiny_unet().double(), torch.Generator().manual_seed(0)
    z, text = (torch.randn(s, generator=g).double() for s in ((2, 4, 8, 8), (N_TOKENS, D_TEXT)))
    return View(unet, z, 541, text)


def test_heads_side_by_side_are_the_layer(view):
    layers = cross_layers(view.unet)
    assert any(n.startswith("mid_block") for n in layers) and len(layers) >= 3
    outputs, queries = feature_maps(view, layers), layer_queries(view, layers)
    for name in layers:
        attn = view.unet.get_submodule(name)
        outs = [Head(*matrices)(queries[name], view.text.expand(2, -1, -1))
                for matrices in heads(attn)]  # fmt: skip
        assert len(outs) == attn.heads
        expected = attn.to_out[0](torch.cat(outs, -1)).mT
        assert torch.allclose(outputs[name].flatten(2), expected, atol=1e-12)


def test_attention_in_time_is_left_out():
    """A UNet3DConditionModel's temp_attentions have layers called attn2 too."""
    unet = tiny_unet3d()
    every = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert any("temp_attentions" in name for name in every)
    layers = cross_layers(unet)
    assert layers and layers == [n for n in every if "temp_attentions" not in n
                                 and "transformer_in" not in n]  # fmt: skip


def test_layers_that_the_bounds_do_not_know_are_refused():
    attn = tiny_unet().get_submodule(cross_layers(tiny_unet())[0])
    attn.scale *= 2
    with pytest.raises(InputError, match="own scale"):
        heads(attn)


def test_what_is_judged(pipe):
    [case] = edit_cases(WORLD, "test", 1, ["colour"])
    asked = list(pairs(pipe, case, (501, 481), (0.1, 0.0), 64))
    kinds = {(p.kind, p.share) for p in asked}
    assert kinds == {("words", 1.0), ("edit", 1.0)} | {
        (kind, share) for kind in ("frame", "step") for share in (0.1, 0.0)
    }
    for p in asked:
        # The first layer's queries have not yet heard of the words.
        no_words_yet = p.kind == "edit" and p.layer.startswith("down_blocks.1")
        assert torch.equal(p.x, p.x_ideal) == (p.kind == "words" or no_words_yet)
        assert torch.equal(p.z, p.z_ideal) == (p.share == 0)
    first = next(p for p in asked if p.kind == "words")
    scaled = next(p for p in asked if p.kind == "step" and p.share == 0.1)
    gap = (first.z - first.z_ideal).norm()
    assert (scaled.z - scaled.z_ideal).norm() == pytest.approx(0.1 * float(gap))


def test_bounds_hold_on_the_miniature_and_equal_tokens_break_the_papers(pipe):
    cases = edit_cases(WORLD, "test", 1, ["shape"])
    rows = head_rows(pipe, cases, [501], judged, 64, shares=(0.1, 0.0))
    assert len(rows) == 6 * 2 * 6  # layers, heads, pairs
    for r in rows:
        assert r["difference"] <= r["F"] and r["row"] <= r["R"] and r["a"] <= r["bound_a"]
        if r["share"] == 0:
            assert r["difference"] > 1e-3 and r["paper"] == 0
        n_sites = 256 if r["layer"].startswith("up 1") else 64
        assert (n_sites / 32) ** 0.5 <= r["norm"] <= n_sites**0.5
    with pytest.raises(InputError, match="none 20 before"):
        head_rows(pipe, cases, [10], judged, 64)


def test_judged_is_the_comparison():
    g = torch.Generator().manual_seed(0)
    shapes = ((4, 2), (3, 2), (3, 2), (5, 4), (5, 4), (6, 3), (6, 3))
    points = [torch.randn(s, generator=g) for s in shapes]
    said, d = judged(*points), [p.double() for p in points]
    c = Comparison(Head(*d[:3]), *d[3:])
    assert said["F"] == float(c.bound_f()) and said["row"] == float(c.difference.norm(dim=1).max())
    alike = dataclasses.replace(c, x_ideal=c.x, z_ideal=c.z)
    assert float(alike.bound_f()) == float(alike.bound_paper()) == 0


@pytest.mark.parametrize(
    "name, short",
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2", "down 1.0"),
        ("up_blocks.2.attentions.1.transformer_blocks.3.attn2", "up 2.1.3"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2", "mid 0"),
    ],
)
def test_names_of_layers(name, short):
    assert short_layer(name) == short
