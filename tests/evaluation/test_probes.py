"""Maps equal scores written out in fp64, what was planted is found, a probe changes nothing."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import D_TEXT, N_TOKENS, WORDS, tiny_motion_unet, tiny_unet

from vala_research import InputError
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.backbone import Backbone
from vala_research.evaluation.cases import Case
from vala_research.evaluation.probes import (
    View,
    attention_maps,
    decoder_layers,
    feature_maps,
    grid_of,
    probabilities,
    self_attention_maps,
    short_name,
    third_upsampling_block,
    views_of,
    word_positions,
)
from vala_research.experiments.ge.attention_figures import features_figure, maps_figure
from vala_research.experiments.ge.attention_measurements import (
    feature_rows,
    layer_rows,
    localisation,
    map_rows,
)
from vala_research.methods.temporal import frame_similarity

D_VISION, N_SHARED = 6, 3
# fp64: what must agree agrees to round-off; probabilities are at most 1, features of order 1.
SAME = 1e-12


def perturbed(unet, **settings) -> TemporalAdapter:
    """An adapter that does something: no training, random B."""
    generator = torch.Generator().manual_seed(1)
    settings = AdapterSettings(n_shared=N_SHARED, **settings)
    adapter = TemporalAdapter.attach(unet, settings, D_VISION, generator)
    for name, p in adapter.lora_parameters():
        if ".lora_B." in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return adapter


def view(unet=None, has_adapter: bool = True, size=(8, 8)) -> View:
    """Three frames of noise in fp64."""
    unet = (unet or tiny_unet()).double()
    adapter = perturbed(unet) if has_adapter else None
    generator = torch.Generator().manual_seed(2)
    z, text, vision = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 4, *size), (N_TOKENS, D_TEXT), (3, 5, D_VISION))
    )
    if has_adapter:
        adapter.tokens.double()
    return View(unet, z, 541, text, adapter, vision, scale=0.5, is_adapted=has_adapter)


def explicit(unet, layer: str, seen: dict, own: bool):
    """Probabilities f n m of a layer by loops over frames and heads, from its projections alone."""
    attn = unet.get_submodule(layer)
    x, context = seen[layer]
    slow = []
    for f in range(len(x)):
        q, k = attn.to_q(x[f]), attn.to_k(x[f] if own else context[f])
        d = q.shape[-1] // attn.heads
        heads = []
        for h in range(attn.heads):
            s = slice(h * d, (h + 1) * d)
            e = torch.exp(q[:, s] @ k[:, s].T / d**0.5)
            heads.append(e / e.sum(1, keepdim=True))
        slow.append(sum(heads) / attn.heads)
    return torch.stack(slow)


def inputs_of(v: View, layers) -> dict:
    """What the layers are given, by torch's own hooks."""
    seen = {}

    def hook(name):
        def keep(_module, args, kwargs):
            seen[name] = args[0], kwargs.get("encoder_hidden_states")

        return keep

    handles = [
        v.unet.get_submodule(n).register_forward_pre_hook(hook(n), with_kwargs=True) for n in layers
    ]
    v.predict()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("is_adapted", [False, True])
def test_maps_equal_explicit_scores(is_adapted):
    v = replace(view(), is_adapted=is_adapted)
    layers = decoder_layers(v.unet)
    seen = inputs_of(v, [*layers, *layers.values()])
    crossed = attention_maps(v, list(layers))
    own = self_attention_maps(v, list(layers.values()))
    with torch.no_grad(), v.adapter.active(is_adapted, v.scale):
        for cross, own_layer in layers.items():
            slow = explicit(v.unet, cross, seen, own=False)  # f n m
            assert (crossed[cross].flatten(2).mT - slow).abs().max() < SAME
            received = explicit(v.unet, own_layer, seen, own=True).mean(1)  # f n
            assert (own[own_layer][:, 0].flatten(1) - received).abs().max() < SAME
    assert crossed[cross].shape[1] == N_TOKENS + is_adapted * (N_SHARED + 3)


def test_maps_sum_to_one():
    v = view()
    layers = decoder_layers(v.unet)
    for maps in attention_maps(v, list(layers)).values():
        assert (maps.sum(1) - 1).abs().max() < SAME  # over tokens, at each site
    queries = torch.zeros(3, 1, 16, 16).double()
    queries[:, :, 2:6, 3:7] = 1
    for given in (None, queries):
        for maps in self_attention_maps(v, list(layers.values()), given).values():
            assert (maps.sum((1, 2, 3)) - 1).abs().max() < SAME  # over sites


def test_a_group_of_tokens_is_their_sum_and_follows_the_adapters_tokens():
    v = view()
    layers = list(decoder_layers(v.unet))
    every = attention_maps(v, layers)
    groups = attention_maps(v, layers, [[2], [3, 5]])
    for name in layers:
        before = v.n_adapter_tokens
        assert torch.equal(groups[name][:, 0], every[name][:, before + 2])
        both = every[name][:, [before + 3, before + 5]].sum(1)
        assert (groups[name][:, 1] - both).abs().max() < SAME


@pytest.mark.parametrize("model", [tiny_unet, tiny_motion_unet])
def test_a_probe_changes_nothing(model):
    v = view(model(), has_adapter=model is tiny_unet)
    layers = decoder_layers(v.unet)
    before = v.predict()
    feature_maps(v, [*layers, *layers.values()])
    attention_maps(v, list(layers), [[1]])
    self_attention_maps(v, list(layers.values()))
    assert torch.equal(v.predict(), before)
    assert not any("forward" in m.__dict__ for m in v.unet.modules())
    if v.adapter is not None:  # nor does a look with the adapter leave it on
        plain = tiny_unet().double()
        expected = Backbone(plain)(v.z[None], v.t, v.text[None])[0]
        off = replace(v, is_adapted=False)
        assert (off.predict() - expected).abs().max() < SAME
        assert (before - expected).abs().max() > 1e-4


def test_the_network_sees_the_same_while_it_is_probed(monkeypatch):
    """The prediction of the probed pass itself, not only of the next."""
    v, found = view(), []
    predict = View.predict
    monkeypatch.setattr(View, "predict", lambda s, *p: found.append(predict(s, *p)) or found[-1])
    attention_maps(v, list(decoder_layers(v.unet)), [[1]])
    assert torch.equal(found[0], predict(v))


def test_features_are_the_layers_outputs_frame_by_frame():
    v = view(size=(6, 10))  # halved twice: 3 x 5, 2 x 3
    layers = list(decoder_layers(v.unet))
    found = {}
    handles = [
        v.unet.get_submodule(n).register_forward_hook(lambda *a, n=n: found.update({n: a[-1]}))
        for n in layers
    ]
    v.predict()
    for handle in handles:
        handle.remove()
    for name, features in feature_maps(v, layers).items():
        assert torch.equal(features.flatten(2).mT, found[name])


def test_chunks_of_frames_are_put_together_in_order(monkeypatch):
    v = view()
    layers = list(decoder_layers(v.unet))
    whole = attention_maps(v, layers, [[1], [4]])
    monkeypatch.setattr("vala_research.diffusion.backbone.SITES_PER_CHUNK", 64)  # a frame each
    for name, maps in attention_maps(v, layers, [[1], [4]]).items():
        assert (maps - whole[name]).abs().max() < SAME


def test_planted_attention_is_found():
    """A layer whose keys single out one token at the sites of a square, and nowhere else."""
    torch.manual_seed(0)
    unet = tiny_unet().double()
    name = list(decoder_layers(unet))[0]
    attn = unet.get_submodule(name)
    q, k = attn.to_q.in_features, attn.to_k.in_features
    attn.to_q.weight.data = torch.eye(attn.to_q.out_features, q).double()
    attn.to_k.weight.data = torch.zeros(attn.to_k.out_features, k).double()
    attn.to_k.weight.data[:, 0] = 50.0
    mask = torch.zeros(1, 1, 8, 8).double()
    mask[..., 1:4, 4:8] = 1
    x = mask.flatten(2)[0].mT.expand(-1, q)  # n c: ones inside
    context = torch.zeros(5, k).double()
    context[3, 0] = 1.0  # the word
    map_of_word = probabilities(attn, x, context)[:, 3].view(1, 8, 8)
    share, area = localisation(map_of_word, mask)
    assert area == 12 / 64
    # Inside 1, outside an even 1/5 of each of 52 sites.
    assert share == pytest.approx(12 / (12 + 52 / 5), abs=1e-9)
    turned, _ = localisation(map_of_word, mask.flip(2, 3))
    assert turned < share
    even, area = localisation(torch.ones(1, 8, 8).double(), mask)
    assert even == pytest.approx(area, abs=1e-12)
    off, _ = localisation(1 - mask[:, 0], mask)
    assert off == 0


def test_localisation_leaves_out_frames_without_the_object():
    maps, mask = torch.rand(2, 4, 4), torch.zeros(2, 1, 8, 8)
    mask[1, :, :4, :4] = 1
    assert localisation(maps, mask) == localisation(maps[1:], mask[1:])
    with pytest.raises(InputError, match="empty in every frame"):
        localisation(maps[:1], mask[:1])


def test_rows_of_a_layer():
    v = view()
    mask = torch.zeros(3, 1, 16, 16)
    mask[:, :, 4:9, 2:8] = 1
    rows = layer_rows(v, [2, 3], mask)
    crosses = feature_maps(v, list(decoder_layers(v.unet)))
    for row, features in zip(rows, crosses.values(), strict=True):
        assert row["cross"] == pytest.approx(float(frame_similarity(features).mean()))
        assert 0 < row["to_adapter"] < 1 and 0 < row["on_object"] < 1
    plain = layer_rows(replace(v, is_adapted=False), [2, 3])
    assert all(r["to_adapter"] == pytest.approx(0, abs=SAME) for r in plain)
    assert "on_object" not in plain[0]


def test_word_positions(tiny):
    tokenizer = tiny.tokenizer
    prompt = "a red circle moves over the blue background"
    assert word_positions(tokenizer, prompt, "red") == [2]  # after the start and "a"
    assert word_positions(tokenizer, prompt, "red circle") == [2, 3]
    assert word_positions(tokenizer, "red red", "red") == [1, 2]
    assert "dog" not in WORDS  # in pieces, all of which are the word
    assert word_positions(tokenizer, "a dog moves", "dog") == [2, 3, 4]
    for prompt, words in (("a circle", "red"), ("a circle", ""), ("a " * 20 + "red", "red")):
        with pytest.raises(InputError, match="is not in what the model reads"):
            word_positions(tokenizer, prompt, words)


def test_views_of_a_clip(tiny, video):
    ask = dict(pipe=tiny, frames=video, prompt="a red circle", t=541)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 0, 1)]
    first, again, other = (views_of(generator=g, **ask) for g in seeds)
    assert set(first) == {"without"}  # no adapter is loaded
    assert torch.equal(first["without"].z, again["without"].z)
    assert not torch.equal(first["without"].z, other["without"].z)
    a, z_0 = float(tiny.scheduler.alphas_cumprod[541]), tiny.encode(video)
    for noise, is_same in (("own", False), ("shared", True)):
        z = views_of(generator=torch.Generator().manual_seed(0), noise=noise, **ask)["without"].z
        eps = (z - a**0.5 * z_0) / (1 - a) ** 0.5
        assert ((eps[0] - eps[1]).abs().max() < 1e-5) == is_same
        assert 0.8 < eps.std() < 1.2
    for wrong, words in ((dict(t=1000), "timestep"), (dict(noise="some"), "noise")):
        with pytest.raises(InputError, match=words):
            views_of(generator=torch.Generator(), **{**ask, **wrong})


def test_errors_name_what_is_wrong():
    v = view()
    layers = list(decoder_layers(v.unet))
    for wrong in (["up_blocks.9.attentions.0"], []):
        with pytest.raises(InputError, match="choose from .*up_blocks"):
            feature_maps(v, wrong)
    for tokens in ([[N_TOKENS]], [[-1]]):
        with pytest.raises(InputError, match="positions"):
            attention_maps(v, layers, tokens)
    with pytest.raises(InputError, match="no halving"):
        grid_of(7, v.z)


def test_blocks_of_stable_diffusion():
    """On SD 1.5 itself: the eight layers of blocks 4 to 11, three of them in the third block."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    blocks = [(1, 1), (1, 2), *((b, a) for b in (2, 3) for a in range(3))]
    names = [f"up_blocks.{b}.attentions.{a}.transformer_blocks.0.attn2" for b, a in blocks]
    assert list(decoder_layers(unet)) == names
    assert list(third_upsampling_block(unet)) == names[2:5]


def test_rows_hold_every_plotted_number(video):
    v = view()
    at = {t: {"without": replace(v, t=t, is_adapted=False), "with": replace(v, t=t)}
          for t in (1, 981)}  # fmt: skip
    mask = torch.zeros(3, 1, 16, 24)
    mask[:, :, 4:9, 2:8] = 1
    adapted = at[981]["with"]
    maps = attention_maps(adapted, list(third_upsampling_block(v.unet)), [[3]])
    even = [m[1, 0] / m[1, 0].mean() for m in maps.values()]  # of the second frame
    for given in (mask, None):
        case = Case(video, "a red circle", "circle", given)
        rows = map_rows(case, at, [3])
        assert len(rows) == 2 * 2 * 2 * 2 * 16  # side, adapter, t, frame, site
        drawn = [r["value"] for r in rows if (r["map"], r["adapter"], r["t"], r["frame"])
                 == ("words", "with", 981, 2)]  # fmt: skip
        expected = torch.stack(even).mean(0).flatten()
        assert (torch.tensor(drawn) - expected).abs().max() < 1e-5  # float32
        page = maps_figure(pd.DataFrame(rows), case)
        shown = [ax.images[0].get_array() for ax in page.axes if ax.images]
        assert any(np.allclose(x.ravel(), drawn) for x in shown if x.ndim == 2)
    rows, cosines = feature_rows(at)
    page = features_figure(pd.DataFrame(rows), pd.DataFrame(cosines))
    shown = [ax.images[0].get_array() for ax in page.axes if ax.images]
    for layer, features in feature_maps(adapted, list(decoder_layers(v.unet))).items():
        picture = [r for r in rows if (r["layer"], r["adapter"], r["t"], r["frame"])
                   == (short_name(layer), "with", 981, 1)]  # fmt: skip
        drawn = torch.tensor([r["value"] for r in picture])
        assert (drawn - features[0, picture[0]["channel"]].flatten()).abs().max() < 1e-5
        assert any(np.allclose(x.ravel(), drawn) for x in shown if x.size == len(drawn))
        (cosine,) = (r["cosine"] for r in cosines if (r["layer"], r["adapter"], r["t"])
                     == (short_name(layer), "with", 981))  # fmt: skip
        assert cosine == pytest.approx(float(frame_similarity(features[:2])[0]))


def test_features_of_two_adjacent_frames_are_needed():
    v = view()
    with pytest.raises(InputError, match="at least 2 frames"):
        layer_rows(replace(v, z=v.z[:1], vision=v.vision[:1]), [2])
