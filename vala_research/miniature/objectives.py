"""What each part of the miniature learns: its loss as a module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vala_research.miniature.configuration import SCHEDULE


class VaeLoss(nn.Module):
    """Pixel MSE + 0.02 L1 + 1e-7 KL, just enough noise to make latents smooth."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, progress: float = 1.0) -> dict[str, Tensor]:
        posterior = self.model.encode(pixels).latent_dist
        output = self.model.decode(posterior.sample()).sample
        mse = F.mse_loss(output, pixels)
        loss = mse + 0.02 * F.l1_loss(output, pixels) + 1e-7 * posterior.kl().mean()
        return {"loss": loss, "psnr": -10 * (mse.detach() / 4).log10()}


class ClipLoss(nn.Module):
    """Image-text contrast. Captions with the same meaning are not each other's negatives."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels, ids, mask, meaning, progress: float = 1.0) -> dict[str, Tensor]:
        out = self.model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        logits = out.logits_per_image
        same = (meaning[:, None] == meaning).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": loss, "right": right}


class EpsilonLoss(nn.Module):
    """What losses of eps share: the noise levels, and networks that stay frozen.

    frozen: kept in a tuple, so that they are neither averaged nor in a checkpoint.
    """

    def __init__(self, *frozen: nn.Module):
        super().__init__()
        from diffusers import DDIMScheduler

        self._frozen = frozen
        self.register_buffer("ab", DDIMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)

    def noised(self, z: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """z_t, and alpha_bar_t shaped to go with it; t: one timestep per sample."""
        ab = self.ab[t].view(-1, *[1] * (z.ndim - 1))
        return ab.sqrt() * z + (1 - ab).sqrt() * eps, ab


class DenoiserLoss(EpsilonLoss):
    """Epsilon regression of UNet and text encoder together, weighed by `weight_of`.

    emphasis: at first, sites at and around the object count (1 + emphasis) times. It fades to
        nothing, so that shapes, a small part of the picture, are learnt early and nothing is biased
        in the end. The sites around the object count too, or uncertain outlines would grow.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, emphasis: float = 3.0):
        super().__init__()
        self.unet, self.text_encoder, self.emphasis = unet, text_encoder, emphasis

    def forward(self, z, eps, t, ids, site_mask, progress: float = 1.0) -> dict[str, Tensor]:
        z_t, ab = self.noised(z, eps, t)
        text = self.text_encoder(ids).last_hidden_state
        out = self.unet(z_t.to(memory_format=torch.channels_last), t, text).sample
        error, focus = (out - eps).square(), focus_of(site_mask, self.emphasis, progress)
        return {"loss": (error * weight_of(ab) * focus).mean(), "mse": error.detach().mean()}


def focus_of(site_mask: Tensor, emphasis: float, progress: float) -> Tensor:
    """Weights of the sites, of mean 1: more at and around the object, fading with progress."""
    near = F.max_pool2d(site_mask, 5, 1, 2)
    focus = 1 + emphasis * max(0.0, 1 - progress / 0.7) * near
    return focus / focus.mean((1, 2, 3), keepdim=True)


def weight_of(alpha_bar: Tensor) -> Tensor:
    """Weight of the error of eps at a noise level: min(SNR, 5) / SNR / (alpha_bar + 0.01).

    Min-SNR-5 (Hang et al. 2023) times the weight of the v-parametrisation, 1 / alpha_bar (Salimans
    and Ho 2022), bounded at 100. Pure epsilon regression hardly feels the high noise levels, where
    colours and layout are decided and the error to be explained is alpha_bar.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=5) / snr / (alpha_bar + 0.01)
