"""The recipe of the edit ControlNet on a few frames; about 12 s, most of it the rendering."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from vala_research import InputError
from vala_research.miniature import edit_control, edit_pairs
from vala_research.miniature.edit_pairs import N_EDITS, edit_of
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE


def changed(source, target) -> tuple[str, ...]:
    return tuple(k for k, v in source.attributes.items() if target.attributes[k] != v)


def test_edits_keep_the_motion_and_favour_shapes_and_rings():
    pairs = [edit_of(i, e) for i in range(150) for e in range(N_EDITS)]
    assert all(a.motion == b.motion and a.shape for a, b in pairs)
    assert all(edit_of(i, 0)[0] == edit_of(i, 1)[0] for i in range(5))
    kinds = Counter(changed(*pair) for pair in pairs)
    shapes = sum(n for kind, n in kinds.items() if "shape" in kind) / len(pairs)
    assert shapes == pytest.approx(0.65, abs=0.06) and 0.02 < kinds[()] / len(pairs) < 0.09
    of_shape = [pair for pair in pairs if "shape" in changed(*pair)]
    rings = sum("ring" in (a.shape, b.shape) for a, b in of_shape) / len(of_shape)
    assert rings > 0.45  # 0.4 if each of five shapes were drawn alike


@pytest.fixture(scope="module")
def run(tmp_path_factory, miniature) -> Path:
    """Eight frames, four of them inverted, and a training of three steps per stage."""
    folder = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as patch:
        tick(patch, 12.0)
        edit_control.build(folder, 0.6, 8, 4)
    return folder


def tick(patch, seconds: float) -> None:
    """Every step of the recipe takes so long."""
    import itertools
    from types import SimpleNamespace

    from vala_research.miniature import training

    looks = itertools.count()
    patch.setattr(training, "time", SimpleNamespace(monotonic=lambda: seconds * next(looks)))


def test_pairs_are_frames_before_and_latents_after_an_edit(run, pipe):
    held = load_file(run / "pairs.safetensors")
    assert held["after"].shape == (8, N_EDITS, 4, 16, 16) and held["noise"].shape == (4, 4, 16, 16)
    for index in (0, 5):
        source, target = edit_of(index, 2)
        before = render(source, 3, SIZE).frames[index % 3]
        assert (held["before"][index] / 255 - before).abs().max() <= 0.5 / 255 + 1e-6
        after = render(target, 3, SIZE).frames[index % 3][None]
        torch.testing.assert_close(
            held["after"][index, 2].float(), pipe.encode(after)[0], rtol=0, atol=5e-3
        )
    # The noise is that of the bare model: it leads back to the frame.
    start = held["noise"][:1].float()
    caption = edit_of(0, 0)[0].caption
    again = pipe.reconstruct(start, caption, edit_pairs.INVERSION_STEPS, attention="own")
    assert (again - held["before"][:1] / 255).square().mean() < 5e-3


def test_half_of_the_noise_is_inverted(run):
    held = edit_pairs.Pairs(**load_file(run / "pairs.safetensors"))

    class Empty:
        def ids(self, index, generator, dropout):
            return torch.zeros(len(index), 8, dtype=torch.long)

    sample = edit_pairs.pair_sampler(held, Empty())
    z, eps, t, _, before, mask = sample(400, torch.Generator().manual_seed(0), 0.0)
    gap = (eps[:, None] - held.noise.float()).abs().amax((2, 3, 4)).amin(1)
    assert 0.4 < (gap == 0).float().mean() < 0.6 and gap[gap > 0].min() > 1
    assert before.min() >= 0 and before.max() <= 1 and 0 <= t.min() and t.max() < 1000
    assert mask.shape == (400, 1, 16, 16) and z.shape == eps.shape


def test_a_training_goes_on_and_is_exported(run, tmp_path, monkeypatch, pipe):
    before = load_file(run / "control.safetensors")
    tick(monkeypatch, 12.0)
    kept = (run / "hint.csv").read_bytes()
    edit_control.build(run, 1.0, 8, 4)  # more minutes go on, with the whole network
    assert (run / "hint.csv").read_bytes() == kept
    after = load_file(run / "control.safetensors")
    name = "live.controlnet.controlnet_mid_block.weight"
    assert not torch.equal(before[name], after[name])
    edit_control.export(run, tmp_path / "net")
    net = ControlNetModel.from_pretrained(tmp_path / "net")
    assert net.controlnet_mid_block.weight.abs().max() > 0  # it starts at zero
    assert sum(f.stat().st_size for f in (tmp_path / "net").iterdir()) < 4 * 2**20
    pipe.load_controlnet(tmp_path / "net", in_inversion=False)
    source, target = edit_of(0, 0)
    clip = render(source, 2, SIZE).frames
    settings = dict(num_inference_steps=2, attention="own", output_type="pt")
    seen = pipe(clip, target.caption, source.caption, **settings).frames
    pipe.unload_controlnet()
    assert not torch.equal(seen, pipe(clip, target.caption, source.caption, **settings).frames)
    with pytest.raises(InputError, match="holds 8 frames: ask for those"):
        edit_control.build(run, 0.7, 9, 4)


def test_the_picture_s_layers_learn_the_latents(run):
    """With a wrong picture their answer is worse."""
    held = edit_pairs.Pairs(**load_file(run / "pairs.safetensors"))
    torch.manual_seed(0)
    conv_in = torch.nn.Conv2d(4, 64, 3, padding=1)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 8, 4, 2), torch.nn.SiLU(), torch.nn.Conv2d(64, 64, 1)
    )
    loss = edit_control.HintLoss(net, conv_in)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    pictures, codes = held.before / 255, held.codes.float()
    for _ in range(150):
        optimizer.zero_grad()
        row = loss(pictures, codes)
        row["loss"].backward()
        optimizer.step()
    assert row["unexplained"] < 0.4
    assert loss(pictures.roll(1, 0), codes)["unexplained"] > 2 * row["unexplained"]
