"""LPIPS is its definition on both networks; what it cannot read gives one error."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vala_research import InputError
from vala_research.evaluation.perceptual import Lpips, lpips
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene


def noise(*shape, seed=0, of=torch.rand):
    return of(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    """Three sprite frames of 64 pixels."""
    return render(random_scene(torch.Generator().manual_seed(0)), 3, 64).frames


ALEX = [(0, 4, 2, 11, 3, 64), (3, 1, 2, 5, 64, 192), (6, 1, 1, 3, 192, 384), (8, 1, 1, 3, 384, 256),
        (10, 1, 1, 3, 256, 256)]  # fmt: skip
VGG = [(64, 3), (64, 64), "pool", (128, 64), (128, 128), "pool", (256, 128), (256, 256),
       (256, 256), "pool", (512, 256), (512, 512), (512, 512), "pool", (512, 512), (512, 512),
       (512, 512)]  # fmt: skip


def network(kind: str) -> tuple[nn.Sequential, list[int]]:
    """torchvision's `features`, random, and the numbers of the outputs that LPIPS compares."""
    torch.manual_seed(0)
    if kind == "alex":
        layers = {}
        for number, stride, padding, side, c, d in ALEX:
            layers[number] = nn.Conv2d(c, d, side, stride, padding)
            layers[number + 1] = nn.ReLU()
        layers |= {2: nn.MaxPool2d(3, 2), 5: nn.MaxPool2d(3, 2)}
        return nn.Sequential(*(layers[i] for i in range(12))), [1, 4, 7, 9, 11]
    layers = []
    for spec in VGG:
        new = (
            [nn.MaxPool2d(2, 2)] if spec == "pool" else [nn.Conv2d(*spec[::-1], 3, 1, 1), nn.ReLU()]
        )
        layers += new
    return nn.Sequential(*layers), [3, 8, 15, 22, 29]


def saved(folder, kind: str):
    """The layout that `lpips` reads, and the network it should be."""
    net, compared = network(kind)
    save_file(
        {f"features.{k}": v for k, v in net.state_dict().items()}, folder / "model.safetensors"
    )
    widths = [net[i - 1].out_channels for i in compared]
    heads = {f"lin{i}.model.1.weight": noise(1, d, 1, 1, seed=i) for i, d in enumerate(widths)}
    save_file(heads, folder / "heads.safetensors")
    return net, compared, list(heads.values())


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips_folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, *saved(folder, request.param)


def slow_lpips(net, compared, heads, a, b) -> float:
    """One picture pair, place by place, in fp64."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    net = net.double()
    x, y = (((2 * v.double() - 1) - shift) / scale for v in (a, b))
    total = 0.0
    with torch.no_grad():
        for i, layer in enumerate(net):
            x, y = layer(x), layer(y)
            if i in compared:
                head, values = heads[compared.index(i)].double().flatten(), []
                for r in range(x.shape[1]):
                    for s in range(x.shape[2]):
                        u, v = (z[:, r, s] / (z[:, r, s].norm() + 1e-10) for z in (x, y))
                        values.append((head * (u - v) ** 2).sum())
                total += sum(values) / len(values)
    net.float()
    return float(total)


def test_lpips_is_its_definition(lpips_folder):
    folder, *reference = lpips_folder
    a, b = noise(2, 3, 32, 48), noise(2, 3, 32, 48, seed=1)
    expected = [slow_lpips(*reference, x, y) for x, y in zip(a, b, strict=True)]
    # fp32 convolutions against fp64: five layers, 1e-4 relative is ample
    assert lpips(a, b, folder) == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert Lpips.from_pretrained(folder).distances(a, b).tolist() == pytest.approx(
        expected, rel=1e-4
    )
    # The wrong range, or pictures that are not brought to it, would be noticed.
    wrong = [slow_lpips(*reference, (x + 1) / 2, (y + 1) / 2) for x, y in zip(a, b, strict=True)]
    assert abs(sum(wrong) / 2 / lpips(a, b, folder) - 1) > 0.01


def test_lpips_is_zero_for_the_same_symmetric_and_grows_with_noise(lpips_folder, clip):
    model = Lpips.from_pretrained(lpips_folder[0])
    assert lpips(clip, clip, model) == 0
    worse = [clip + s * (noise(*clip.shape) - 0.5) for s in (0.05, 0.2, 0.8)]
    values = [lpips(x, clip, model) for x in worse]
    assert 0 < values[0] < values[1] < values[2]
    assert lpips(clip, worse[2], model) == pytest.approx(values[2], rel=1e-6)
    # Batches change nothing beyond rounding.
    whole, parts = (model.distances(clip, worse[2], batch=n) for n in (8, 2))
    assert torch.allclose(whole, parts, rtol=1e-5)


def test_lpips_takes_heads_from_another_folder(tmp_path, lpips_folder, clip):
    folder = lpips_folder[0]
    for name in ("model", "heads"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").write_bytes(
            (folder / f"{name}.safetensors").read_bytes()
        )
    value = lpips(clip, clip.flip(-1), tmp_path / "model", tmp_path / "heads")
    assert value == lpips(clip, clip.flip(-1), folder)
    with pytest.raises(InputError, match="holds no heads.safetensors"):
        lpips(clip, clip, tmp_path / "model")


def test_lpips_refuses_what_it_cannot_read(tmp_path, clip):
    with pytest.raises(InputError, match="holds no model.safetensors"):
        lpips(clip, clip, tmp_path)
    with pytest.raises(InputError, match="holds no model.safetensors"):
        lpips(clip, clip, tmp_path / "none")
    with pytest.raises(InputError, match="neither on this machine nor to be had from the hub"):
        lpips(clip, clip, "no-network/in-tests")
    (tmp_path / "alexnet.pth").write_bytes(b"x")
    for pickled in (tmp_path, tmp_path / "alexnet.pth"):
        with pytest.raises(InputError, match="is a pickle, which can run code"):
            lpips(clip, clip, pickled)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="is not readable as safetensors"):
        lpips(clip, clip, tmp_path)
    save_file({"features.0.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="are of another network"):
        lpips(clip, clip, tmp_path)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lack 'features.0.weight'"):
        lpips(clip, clip, tmp_path)
    saved(tmp_path, "alex")
    with pytest.raises(InputError, match="LPIPS needs 32x32"):
        lpips(clip[..., :31], clip[..., :31], tmp_path)
    with pytest.raises(InputError, match="differ in shape"):
        lpips(clip, clip[:2], tmp_path)
    heads = load_file(tmp_path / "heads.safetensors")
    save_file(
        heads | {"lin1.model.1.weight": torch.ones(1, 5, 1, 1)}, tmp_path / "heads.safetensors"
    )
    with pytest.raises(InputError, match="are those of another network"):
        lpips(clip, clip, tmp_path)
