"""The recipe of the depth ControlNet on a few frames; about 8 s."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from test_edit_control import tick

from vala_research import InputError
from vala_research.miniature import layout_control
from vala_research.miniature.configuration import training_scene
from vala_research.miniature.edit_control import export
from vala_research.miniature.layout_control import STAGE
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE


def test_the_recipe_learns_frames_from_their_depth(tmp_path, miniature, pipe, monkeypatch):
    tick(monkeypatch, 12.0)
    layout_control.build(tmp_path, 1.2, 6)
    held = layout_control.layouts(tmp_path, 6, None, "cpu")
    clip = render(training_scene(4), 3, SIZE)
    assert torch.equal(held["depth"][4], clip.depth[1].byte())
    shown = layout_control.layout_sampler(
        {k: v[4:5] for k, v in held.items()}, SimpleNamespace(ids=lambda i, *_, dropout: i)
    )(1, torch.Generator(), 0.0)[4]
    assert torch.equal(shown[0], clip.depth_pictures[1])
    codes = pipe.encode(clip.frames[1:2])[0]
    torch.testing.assert_close(held["codes"][4].float(), codes, rtol=0, atol=5e-3)
    export(tmp_path, tmp_path / "net", STAGE)
    net = ControlNetModel.from_pretrained(tmp_path / "net")
    assert net.controlnet_mid_block.weight.abs().max() > 0  # it starts at zero
    with pytest.raises(InputError, match="holds 6 frames: ask for those"):
        layout_control.build(tmp_path, 1.3, 7)


def test_samples_show_depths_of_their_own_latents():
    depth = torch.arange(3).view(3, 1, 1, 1).expand(-1, 1, 8, 8).byte()
    codes = depth[:, :, :2, :2].float().expand(-1, 4, -1, -1)
    captions = SimpleNamespace(ids=lambda index, *_, dropout: index)
    held = {"depth": depth, "codes": codes, "mask": codes[:, :1]}
    sample = layout_control.layout_sampler(held, captions)
    z, eps, t, ids, pictures, mask = sample(64, torch.Generator().manual_seed(0), 0.0)
    assert torch.equal(z[:, 0, 0, 0].long(), ids) and z.shape == eps.shape
    assert torch.equal(pictures[:, 2, 0, 0], ids / 2) and torch.equal(mask[:, 0, 0, 0], ids.float())
    assert 0 <= t.min() and t.max() < 1000
