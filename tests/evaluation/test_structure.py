"""Structure distance and PickScore by their definitions, and the metrics on the miniature."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModel, ViTConfig, ViTModel

from vala_research import InputError
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.frechet import fid_miniature_clip
from vala_research.evaluation.metrics import clip_text, pickscore, pickscore_miniature
from vala_research.evaluation.perceptual import lpips_miniature
from vala_research.evaluation.structure import (
    KeyEncoder,
    structure_distance,
    structure_distance_miniature,
)
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene


def noise(*shape, seed=0, of=torch.rand):
    return of(*shape, generator=torch.Generator().manual_seed(seed))


def sprites(seed: int):
    return random_scene(torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    """Three sprite frames of 64 pixels."""
    return render(sprites(0), 3, 64).frames


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A random ViT of DINO's class: 32 pixels, patches of 8."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, image_size=32, patch_size=8)  # fmt: skip
    model = ViTModel(config)
    for weight in model.parameters():  # std 0.02 would make all keys alike
        nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder


def test_structure_distance_is_its_definition(vit_folder):
    a, b = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    model = AutoModel.from_pretrained(vit_folder).eval()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    last, total = model.layers[-1] if hasattr(model, "layers") else model.encoder.layer[-1], 0.0
    attention = last.attention if hasattr(last.attention, "k_proj") else last.attention.attention
    project = attention.k_proj if hasattr(attention, "k_proj") else attention.key
    for x, y in zip(a, b, strict=True):
        similarity = []
        for picture in (x, y):
            with torch.no_grad():
                out = model(((picture - mean) / std)[None], output_hidden_states=True)
                keys = project(last.layernorm_before(out.hidden_states[-2]))[0]
            assert keys.shape == (17, 16)  # sixteen patches and the class token
            rows = [[torch.dot(u, v) / (u.norm() * v.norm()) for v in keys] for u in keys]
            similarity.append(torch.tensor(rows))
        total += (similarity[0] - similarity[1]).square().mean().item() / 2
    assert structure_distance(a, b, vit_folder) == pytest.approx(total, rel=1e-4)  # fp32
    assert total > 1e-3


def test_structure_distance_is_zero_for_the_same_and_symmetric(vit_folder, clip):
    encoder = KeyEncoder.from_pretrained(vit_folder)
    assert structure_distance(clip, clip, encoder) == 0
    there, back = (structure_distance(*p, encoder) for p in ((clip, 1 - clip), (1 - clip, clip)))
    assert there == pytest.approx(back, rel=1e-6) and 0 < there <= 4


def test_structure_distance_refuses_other_models(tmp_path, vit_folder, clip, miniature):
    for name in (tmp_path, tmp_path / "none", "no-network/in-tests", miniature):
        with pytest.raises(InputError, match="no vision transformer"):
            structure_distance(clip, clip, name)
    ViTModel.from_pretrained(vit_folder).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors weights"):
        structure_distance(clip, clip, tmp_path)


def test_pickscore_is_the_logit(miniature_clip, clip):
    scorer = ClipScorer.from_pretrained(miniature_clip)
    scale = scorer.model.logit_scale.exp().item()
    prompt = sprites(0).caption
    value = pickscore(clip, prompt, scorer)
    assert value == pytest.approx(scale * clip_text(clip, prompt, scorer) / 100, rel=1e-5)
    assert value == pytest.approx(pickscore(clip, prompt, miniature_clip, miniature_clip), rel=1e-6)
    assert pickscore_miniature(clip, prompt) == pytest.approx(value, rel=1e-6)
    # The clip's own caption beats that of a scene with another shape, colour and background.
    others = [sprites(k).caption for k in range(1, 6)]
    assert value > max(pickscore_miniature(clip, other) for other in others)
    with pytest.raises(InputError, match="no CLIPModel"):
        pickscore(clip, prompt, "no-network/in-tests")
    with pytest.raises(InputError, match="no CLIPModel"):
        pickscore(clip, prompt)  # the hub's, which is out of reach here


def test_the_miniatures_metrics_run_anywhere_and_order_edits(miniature_clip, clip):
    slight, strong = (clip + s * (noise(*clip.shape) - 0.5) for s in (0.1, 1.0))
    for metric in (lpips_miniature, structure_distance_miniature):
        assert metric(clip, clip) == 0
        assert 0 < metric(slight, clip) < metric(strong, clip) <= 4
        assert metric(strong, clip) == pytest.approx(metric(clip, strong), rel=1e-5)
    with pytest.warns(UserWarning, match="rank-deficient: 3 frames .* of 64"):
        assert fid_miniature_clip(clip, clip) == pytest.approx(0, abs=1e-6)
        values = [fid_miniature_clip(x, clip) for x in (slight, strong)]
    assert 0 < values[0] < values[1] <= 4 and not math.isnan(values[1])


def test_a_change_of_colour_moves_structure_less_than_a_change_of_place(miniature_clip):
    """What the distance is for; of many scenes, as the miniature's keys are no DINO's."""
    encoder = KeyEncoder.of_clip(ClipScorer.from_pretrained(miniature_clip))
    wins = 0
    for seed in range(100, 140):
        scene = sprites(seed)
        source = render(scene, 1, 64).frames
        recoloured = render(scene.edited(colour="blue" if scene.colour == "red" else "red"), 1, 64)
        look = structure_distance(recoloured.frames, source, encoder)
        wins += look < structure_distance(source.flip(-1).flip(-2), source, encoder)
    assert wins >= 28, wins  # a coin gives so many in one run of a hundred
