"""FID is the closed form between Gaussians, on the network that is written out here."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import nn

from vala_research import InputError
from vala_research.evaluation.frechet import BLOCKS, Inception, fid, frechet_distance
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene


def noise(*shape, seed=0, of=torch.rand):
    return of(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    """Three sprite frames of 64 pixels."""
    return render(random_scene(torch.Generator().manual_seed(0)), 3, 64).frames


def gaussian(n: int, mean, covariance, seed: int) -> torch.Tensor:
    """n points whose sample mean and covariance (divisor n - 1) are exactly these."""
    d = len(mean)
    z = noise(n, d, seed=seed, of=torch.randn).double()
    z = z - z.mean(0)
    root = torch.linalg.cholesky(z.T @ z / (n - 1))
    white = torch.linalg.solve_triangular(root, z.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    d = 6
    means = [noise(d, seed=s, of=torch.randn).double() for s in (1, 2)]
    factors = [noise(d, d, seed=s, of=torch.randn).double() for s in (3, 4)]
    covariances = [f @ f.T + 0.1 * torch.eye(d) for f in factors]
    x, y = (gaussian(n, m, s, n) for n, m, s in zip((40, 90), means, covariances, strict=True))
    root = torch.from_numpy(sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    expected = (means[0] - means[1]).square().sum() + torch.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    # fp64; sqrtm of a matrix with condition number about 1e3 is good to 1e-10
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    shifted = x + torch.arange(d)
    assert frechet_distance(x, shifted) == pytest.approx(sum(i**2 for i in range(d)), rel=1e-9)
    grown = 4 * torch.trace(covariances[0]).item()
    scaled = 3 * (x - means[0]) + means[0]  # the same axes: tr (3 S^(1/2) - S^(1/2))^2 = 4 tr S
    assert frechet_distance(x, scaled) == pytest.approx(grown, rel=1e-9)


def test_frechet_distance_of_diagonal_covariances():
    """sum of (mu - nu)^2 + (s - t)^2: nothing to do with matrix roots."""
    s, t = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1.5, 0.2, 2.0]).double()
    mu, nu = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    x = gaussian(20, mu, torch.diag(s**2), 0)
    y = gaussian(9, nu, torch.diag(t**2), 1)
    expected = ((mu - nu) ** 2 + (s - t) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("n, m", [(5, 5), (5, 30), (30, 4)])
def test_a_deficient_rank_is_said_and_the_number_is_still_the_definition(n, m):
    x, y = noise(n, 12, of=torch.randn), noise(m, 12, seed=1, of=torch.randn)
    with pytest.warns(UserWarning, match=rf"rank-deficient: {min(n, m)} frames .* of 12"):
        found = frechet_distance(x, y)
    a, b = torch.cov(x.double().T), torch.cov(y.double().T)
    # Root of a singular product by eigenvalues: negative ones are rounding, of size 1e-16.
    values = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum() + torch.trace(a + b)
    # sqrt turns the rounding of zero eigenvalues, 1e-15, into 3e-8 each
    assert found == pytest.approx((expected - 2 * values).item(), abs=1e-6)
    # The same covariance, few samples: FID is far from 0 although the sets come from one Gaussian.
    assert found > 3


def test_the_rank_is_full_from_one_more_frame_than_features():
    x = noise(14, 13, of=torch.randn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(x, x)
    with pytest.warns(UserWarning, match="rank-deficient"):
        frechet_distance(x[:13], x)
    with pytest.raises(InputError, match="single frame"):
        frechet_distance(x[:1], x)


class Convolved(nn.Module):
    """conv, bn, rectifier: the unit that Inception v3 is made of."""

    def __init__(self, c, d, side, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(c, d, side, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(d, eps=0.001)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


# Widths are small; kernels, strides and names are the published network's.
STEM = {"Conv2d_1a_3x3": (3, 4, 3, 2), "Conv2d_2a_3x3": (4, 4, 3), "Conv2d_2b_3x3": (4, 5, 3, 1, 1),
        "Conv2d_3b_1x1": (5, 4, 1), "Conv2d_4a_3x3": (4, 6, 3)}  # fmt: skip
SIDES = {"branch5x5_2": 5, "branch3x3": 3, "branch3x3dbl_2": 3, "branch3x3dbl_3": 3,
         "branch7x7_2": (1, 7), "branch7x7_3": (7, 1), "branch7x7dbl_2": (7, 1),
         "branch7x7dbl_3": (1, 7), "branch7x7dbl_4": (7, 1), "branch7x7dbl_5": (1, 7),
         "branch3x3_2": 3, "branch7x7x3_2": (1, 7), "branch7x7x3_3": (7, 1), "branch7x7x3_4": 3,
         "branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1), "branch3x3dbl_3a": (1, 3),
         "branch3x3dbl_3b": (3, 1)}  # fmt: skip


def inception() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A narrow Inception v3 as a tree of modules, and its tensors under pytorch-fid's names."""
    torch.manual_seed(0)
    net, width = nn.Module(), 6
    for name, spec in STEM.items():
        net.add_module(name, Convolved(*spec))
    for block, branches in BLOCKS.items():
        tree, out = nn.Module(), 0
        for branch in branches:
            c = width
            for step in branch.split():
                if step in ("avg", "max", "max/"):
                    continue
                for name in step.rstrip("/").split("|"):
                    side, strided = SIDES.get(name, 1), step.endswith("/")
                    sides = (side, side) if isinstance(side, int) else side
                    padding = 0 if strided else tuple(s // 2 for s in sides)
                    tree.add_module(name, Convolved(c, 3, sides, 2 if strided else 1, padding))
                c = 3 * len(step.split("|"))
            out += c
        net.add_module(block, tree)
        width = out
    for name, tensor in net.state_dict().items():
        if name.endswith("running_mean") or name.endswith("bn.bias"):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return net.eval(), {k: v for k, v in net.state_dict().items() if v.is_floating_point()}


def plain_forward(net, x):
    """Inception v3 up to Mixed_6b, written out branch by branch."""
    pool = nn.functional.max_pool2d
    x = pool(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))), 3, 2)
    x = pool(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)), 3, 2)

    def average(x):
        ones = torch.ones_like(x)
        return nn.functional.avg_pool2d(x, 3, 1, 1) / nn.functional.avg_pool2d(ones, 3, 1, 1)

    for b in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d):
        five = b.branch5x5_2(b.branch5x5_1(x))
        three = b.branch3x3dbl_3(b.branch3x3dbl_2(b.branch3x3dbl_1(x)))
        x = torch.cat([b.branch1x1(x), five, three, b.branch_pool(average(x))], 1)
    b = net.Mixed_6a
    three = b.branch3x3dbl_3(b.branch3x3dbl_2(b.branch3x3dbl_1(x)))
    x = torch.cat([b.branch3x3(x), three, pool(x, 3, 2)], 1)
    for b in (net.Mixed_6b, net.Mixed_6c, net.Mixed_6d, net.Mixed_6e):
        seven, long = b.branch7x7_3(b.branch7x7_2(b.branch7x7_1(x))), b.branch7x7dbl_1(x)
        for name in ("branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"):
            long = getattr(b, name)(long)
        x = torch.cat([b.branch1x1(x), seven, long, b.branch_pool(average(x))], 1)
    b, deep = net.Mixed_7a, x
    for name in ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"):
        deep = getattr(b, name)(deep)
    x = torch.cat([b.branch3x3_2(b.branch3x3_1(x)), deep, pool(x, 3, 2)], 1)
    for b, pooled in ((net.Mixed_7b, average), (net.Mixed_7c, lambda x: pool(x, 3, 1, 1))):
        three, double = b.branch3x3_1(x), b.branch3x3dbl_2(b.branch3x3dbl_1(x))
        x = torch.cat([
            b.branch1x1(x), b.branch3x3_2a(three), b.branch3x3_2b(three), b.branch3x3dbl_3a(double),
            b.branch3x3dbl_3b(double), b.branch_pool(pooled(x)),
        ], 1)  # fmt: skip
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    save_file(inception()[1], folder / "model.safetensors")
    return folder


def test_inception_is_the_network_written_out(inception_folder):
    net, frames = inception()[0], noise(2, 3, 299, 299)
    with torch.no_grad():
        expected = plain_forward(net, 2 * frames - 1)
    found = Inception.from_pretrained(inception_folder).embeddings(frames)
    assert expected.std() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)  # fp32, about fifty layers


def test_fid_of_clips_and_its_errors(tmp_path, inception_folder, clip):
    model = Inception.from_pretrained(inception_folder)
    with pytest.warns(UserWarning, match="rank-deficient: 3 frames"):
        same = fid(clip, clip.flip(0), model)  # a set has no order
    assert same == pytest.approx(0, abs=1e-6)
    with pytest.warns(UserWarning, match="rank-deficient"):
        assert fid(clip, 1 - clip[:2], inception_folder) > 0  # sets of different sizes
    with pytest.raises(InputError, match="holds no model.safetensors"):
        fid(clip, clip, tmp_path)
    with pytest.raises(InputError, match="single frame"):
        fid(clip[:1], clip, model)
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="lack 'Conv2d_1a_3x3.conv.weight'"):
        fid(clip, clip, tmp_path)
