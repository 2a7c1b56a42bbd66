"""Compute bilateral means pair by pair, with one exponential for both ends of a pair.

The kernel of `bilateral_filter`: Eqs. (9)-(11) of GE-Adapter (arXiv 2501.04606), without unfolding
a window. The weights are symmetric, so that both ends of a pair share one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def window_mean(
    x: Tensor, dim: int, radius: tuple[int, int], sigma_spatial: float, sigma_intensity: float,
    border: str,
) -> Tensor:  # fmt: skip
    """Bilateral means of planes x (n 1 h w) over windows of 2 radius + 1 rows and columns.

    dim: axis along which x is split into pieces that no window crosses: 0 splits between planes;
        3 splits columns, and needs a column radius of 0.
    radius: (rows, columns). sigma_spatial: in sites. sigma_intensity: in the units of x.
    """
    rh, rw = radius
    if border == "truncate":  # beyond the other edge there is no neighbour either
        rh, rw = min(rh, x.shape[2] - 1), min(rw, x.shape[3] - 1)
    if rh == rw == 0:
        return x.clone()
    window = _Window(rh, rw, sigma_spatial, sigma_intensity, border, work={})

    # Piece by piece. With gradients, autograd needs new tensors; without, one output is filled.
    pieces = x.split(_piece_length(x, dim, rh, rw), dim)
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.cat([x_i + window.shift(x_i) for x_i in pieces], dim)
    out = torch.empty_like(x)
    for x_i, out_i in zip(pieces, out.split(pieces[0].shape[dim], dim), strict=True):
        torch.add(x_i, window.shift(x_i), out=out_i)
    return out


def _piece_length(x: Tensor, dim: int, rh: int, rw: int) -> int:
    """Length along `dim` to filter at once.

    On a CPU, about its cache, and twice the memory of x. Small x are filtered 4096 numbers at a
    time: below, calls cost more than their arithmetic. On a device, 2^24 numbers of whole windows:
    latents in one piece, for there each call costs more than their arithmetic.
    """
    h, w = x.shape[2:]
    if x.device.type == "cpu":
        wider = work_dtype(x).itemsize / x.element_size()
        size = min(1 << 17, max(1 << 12, 2 * x.numel() / 7) / wider)  # seven numbers per site
    else:
        size = (1 << 24) / ((2 * rh + 1) * (2 * rw + 1))
    return max(1, int(size / ((h + 2 * rh) * (w + 2 * rw) if dim == 0 else h + 2 * rh)))


@dataclass(frozen=True)
class _Window:
    """A window, and the pairs of sites in it.

    Weights are symmetric: a pair of sites costs one exponential, which serves both ends. Padded
    planes lie flat, one after another, so that a neighbour is a constant offset away at any border.
    work: buffers that the pieces share.
    """

    rh: int
    rw: int
    sigma_spatial: float
    sigma_intensity: float
    border: str
    work: dict[str, Tensor]

    def shift(self, x: Tensor) -> Tensor:
        """B(x) - x of planes (n 1 h w)."""
        (n, _, h, w), rh, rw = x.shape, self.rh, self.rw

        # Pad for the border. "truncate" marks padding by -inf, which makes a weight zero.
        pad, x = (rw, rw, rh, rh), x.to(work_dtype(x))
        p, outside = F.pad(x, pad, mode="reflect" if self.border == "reflect" else "constant"), None
        if self.border == "truncate":
            outside = F.pad(torch.zeros_like(x), pad, value=-math.inf).view(-1)

        # The flat result starts at the first site of the first plane and ends at the last site.
        size, width = (h + 2 * rh) * (w + 2 * rw), w + 2 * rw
        if p.is_cpu or (torch.is_grad_enabled() and p.requires_grad):
            flat = _Shift.apply(p.view(-1), self, width, outside)
        else:
            flat = self._of_whole_windows(p.view(-1), width, outside)
        return flat.as_strided((n, 1, h, w), (size, size, width, 1))

    def _of_whole_windows(self, p: Tensor, width: int, outside: Tensor | None) -> Tensor:
        """What `_Shift` makes, in a few large calls: each pair costs two exponentials here."""
        rows, columns = 2 * self.rh + 1, 2 * self.rw + 1
        base = self.rh * width + self.rw
        shape, strides = (rows, columns, p.numel() - 2 * base), (width, 1, 1)
        d = p.as_strided(shape, strides) - p[base:-base]
        y, x = (torch.arange(n) - n // 2 for n in (rows, columns))
        far_off = torch.hypot(y[:, None].double(), x.double()) / self.sigma_spatial
        exponent = -(far_off.square() / 2 / math.log(2)).to(p)[..., None] - self._bits(p) * d * d
        if outside is not None:
            exponent = exponent + outside.as_strided(shape, strides)
        e = exponent.exp2()
        return (e * d).sum((0, 1)) / e.sum((0, 1))

    def _bits(self, p: Tensor) -> float:
        """`sharpness` for powers of two: on some processors torch's exp2 is four times its exp."""
        return min(self.sharpness / math.log(2), torch.finfo(p.dtype).max)

    def pairs(
        self, p: Tensor, width: int, outside: Tensor | None
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yield near ends, far ends, far - near and weight of all pairs with an end inside.

        outside: 0 at sites and -inf in the padding, where padding is no site; otherwise None.
        """
        base = self.rh * width + self.rw  # padding before the first site, and after the last one
        bits = self._bits(p)

        # Half of the window's offsets: the other half are the same pairs from their far ends.
        steps = [(y, x) for y in range(self.rh + 1) for x in range(-self.rw, self.rw + 1)]
        steps = [(y, x) for y, x in steps if (y, x) > (0, 0)]
        far_off = [math.hypot(*s) / self.sigma_spatial for s in steps]
        nearness = [-q * q / 2 / math.log(2) for q in far_off]

        for (y, x), g in zip(steps, p.new_tensor(nearness), strict=True):
            offset = y * width + x
            near = slice(base - offset, p.numel() - base)
            far = slice(base, p.numel() - base + offset)
            d, e = (self._buffer(name, p)[: far.stop - far.start] for name in "de")
            torch.sub(p[far], p[near], out=d)
            if outside is None:
                torch.addcmul(g, d, d, value=-bits, out=e)
            else:
                torch.add(outside[far], outside[near], out=e).add_(g).addcmul_(d, d, value=-bits)
            yield near, far, d, e.exp2_()

    @property
    def sharpness(self) -> float:
        """1 / (2 sigma_intensity^2)."""
        return 0.5 / self.sigma_intensity / self.sigma_intensity

    def _buffer(self, name: str, p: Tensor) -> Tensor:
        if name not in self.work or len(self.work[name]) < len(p):
            self.work[name] = torch.empty_like(p)
        return self.work[name]


class _Shift(torch.autograd.Function):
    """B(x) - x of flat padded planes, from their first site to their last site."""

    @staticmethod
    def forward(ctx, p: Tensor, window: _Window, width: int, outside: Tensor | None) -> Tensor:
        n = p.numel() - 2 * (window.rh * width + window.rw)
        shift, total = p.new_zeros(n), p.new_ones(n)

        # Each pair adds its weight to both ends, and its difference with opposite signs.
        for _, _, d, e in window.pairs(p, width, outside):
            total.add_(e[-n:]).add_(e[:n])
            shift.addcmul_(e[-n:], d[-n:]).addcmul_(e[:n], d[:n], value=-1)
        shift.div_(total)
        ctx.window, ctx.width = window, width
        ctx.save_for_backward(p, total, shift, outside)
        return shift

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        # d shift_x = sum_y w (1 - 2 k d (d - shift_x)) (dz_y - dz_x) / total_x, k = 1 / 2 sigma^2
        p, total, shift, outside = ctx.saved_tensors

        # Divide the gradient by the total weight, once and times the shift; zero in the padding.
        edge = (p.numel() - grad.numel()) // 2
        a = F.pad(grad / total, (edge, edge))
        b = a * F.pad(shift, (edge, edge))
        grad_p = torch.zeros_like(p)

        # Each pair moves gradient from one end to the other.
        root = min(math.sqrt(ctx.window.sharpness), math.sqrt(torch.finfo(p.dtype).max))
        for near, far, d, e in ctx.window.pairs(p, ctx.width, outside):
            u = d.mul_(root).clamp_(-1e4, 1e4)  # beyond, e is 0, and 0 times infinity is NaN
            flow = (1 - 2 * u * u) * (a[near] - a[far]) + 2 * root * u * (b[near] + b[far])
            flow *= e
            grad_p[near] -= flow
            grad_p[far] += flow
        return grad_p, None, None, None


def work_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, otherwise float32: half precision is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
