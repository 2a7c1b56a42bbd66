"""What an edit will cost, added up from the networks' configurations before it starts."""

from dataclasses import dataclass

from torch import nn

from vala_research.diffusion import codec


def peak_bytes(
    networks: dict[str, nn.Module],
    n_frames: int,
    height: int,
    width: int,
    n_steps: int,
    n_branches: int,
    frames_per_chunk: int | None,
    unet_frames: int,
) -> int:
    """All weights, the trajectory, and the larger of what UNet and VAE hold at their widest.

    height, width: of the frames. unet_frames: frames of one chunk of the UNet's inner work. The
    UNet is at its widest in the last decoder block: each branch of each frame holds the upsampled
    input, one skip a layer and one more, and six maps inside the transformer; a chunk its
    feed-forward layer, 16 maps. An estimate, not a bound: the allocator's cache and the framework
    itself come on top.
    """
    vae, unet = networks["vae"], networks["unet"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    h, w = height // factor, width // factor
    channels, layers = unet.config.block_out_channels, unet.config.layers_per_block
    wide = channels[0] * h * w  # one feature map of one frame at full latent resolution
    held = channels[min(1, len(channels) - 1)] / channels[0] + layers + 1 + 6
    in_unet = n_branches * wide * (held * n_frames + 16 * unet_frames)
    part = codec.chunks_of(n_frames, height, width, frames_per_chunk)[0].stop
    in_vae = 5 * vae.config.block_out_channels[0] * height * width * part
    # Models that share their weights hold them once.
    parameters = {id(p): p for m in networks.values() for p in m.parameters()}
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    solver = 4 * n_frames * (unet.config.in_channels * h * w * (n_steps + 10) + 6 * height * width)
    activations = max(in_unet * unet.dtype.itemsize, in_vae * vae.dtype.itemsize)
    return int(weights + solver + activations)


@dataclass(frozen=True)
class Estimate:
    """What an edit will cost.

    n_evaluations: single frames through the UNet, all guidance branches counted; exact, but for
    inversions "exact" and "null_text", where it is an upper bound. Those are forward passes: the
    backward passes of "null_text", at most its iterations a step, and their memory come on top.
    peak_bytes: see `peak_bytes`.
    """

    n_evaluations: int
    peak_bytes: int
    frames_per_chunk: int
