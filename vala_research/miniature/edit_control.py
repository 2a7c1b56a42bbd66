"""The recipe of the miniature's edit ControlNet: `python -m vala_research.miniature.edit_control`.

An edit has to keep the place and the size of what it changes. This ControlNet sees the frame before
the edit and learns the frame after it, which the sprite world renders. So it plays the part of
`control_v11e_sd15_ip2p` beside Stable Diffusion 1.5. It sees each frame alone; the image model and
the video model share it, for both have the same image layers.

ControlNet (Zhang et al. 2023, arXiv 2302.05543); pairs of pictures before and after an edit as
supervision: InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800). Differs from the papers:
* The prompt describes the edited frame; it is no instruction.
* The layers that read the picture do not start at zero, see `HintLoss`.
* Half of the noise is the noise to which the bare model inverts the frame before the edit, since
  an edit starts there. The other half is fresh.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from vala_research import miniature_path
from vala_research.diffusion.controlnet import ControlSettings
from vala_research.diffusion.loading import load_network
from vala_research.editing.defaults import BROUGHT, EditDefaults
from vala_research.miniature.batches import Captions
from vala_research.miniature.configuration import CONTROL, FULL_DEFAULTS
from vala_research.miniature.edit_pairs import (
    N_EDITS,
    edit_of,
    edit_pairs,
    frame_sampler,
    pair_sampler,
)
from vala_research.miniature.feeding import accelerator_on
from vala_research.miniature.objectives import EpsilonLoss, focus_of, weight_of
from vala_research.miniature.training import Stage, named_device, part_of, train

CONDITIONING = (16, 32, 64)  # channels of the picture's own layers; each change halves its size
HINT = Stage("hint", 0.07, batch=32, lr=3e-3, weight_decay=0.0, gpu_batch=512)
STAGE = Stage("control", 0.93, batch=16, lr=8e-4, weight_decay=0.0, gpu_batch=512)


class HintLoss(nn.Module):
    """The layers that read the picture learn what `conv_in` of the UNet makes of its latents.

    So the copied encoder understands the picture from the first step on. With zero layers, as in
    the paper, the same loss took 980 steps instead of 320.
    """

    def __init__(self, embedding: nn.Module, conv_in: nn.Conv2d):
        super().__init__()
        self.embedding, self._frozen = embedding, (conv_in,)

    def forward(
        self, before: Float[Tensor, "b 3 y x"], codes: Float[Tensor, "b c h w"],
        progress: float = 1.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        (conv_in,) = self._frozen
        with torch.no_grad():
            aim = F.conv2d(codes, conv_in.weight, padding=conv_in.padding)
        loss = F.mse_loss(self.embedding(before), aim)
        return {"loss": loss, "unexplained": loss.detach() / aim.var()}


class ControlLoss(EpsilonLoss):
    """Epsilon regression of edited frames; only the ControlNet learns.

    The weights are the image model's (`weight_of`). Sites at and around the object count four times
    at first, as in `DenoiserLoss`.
    """

    def __init__(self, controlnet: nn.Module, unet: nn.Module, text_encoder: nn.Module):
        super().__init__(unet, text_encoder)
        self.controlnet = controlnet

    def forward(
        self, z: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], t: Int[Tensor, " b"],
        ids: Int[Tensor, "b n"], before: Float[Tensor, "b 3 y x"], mask: Float[Tensor, "b 1 h w"],
        progress: float = 1.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        unet, text_encoder = self._frozen
        z_t, ab = self.noised(z, eps, t)
        z_t = z_t.to(memory_format=torch.channels_last)
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state
        down, mid = self.controlnet(z_t, t, text, before, return_dict=False)
        out = unet(
            z_t, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        error = (out - eps).square()
        weighed = error * weight_of(ab)
        return {
            "loss": (weighed * focus_of(mask, 3.0, progress)).mean(),
            "mse": error.detach().mean(),
            "high": _mean_where(weighed, t >= 650),
            "mid": _mean_where(weighed, (t >= 300) & (t < 650)),
        }


def _mean_where(error: Tensor, chosen: Tensor) -> Tensor:
    of_samples = error.detach().mean((1, 2, 3))
    return (of_samples * chosen).sum() / chosen.sum().clamp(min=1)


def frozen_parts(device: str) -> tuple:
    """The miniature's tokenizer, VAE, UNet and text encoder, which do not learn."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(miniature_path())
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    parts = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    loaded = {k: load_network(c, folder / k, f"The miniature's {k}") for k, c in parts.items()}
    vae, unet, text_encoder = (x.to(device).requires_grad_(False) for x in loaded.values())
    for network in (vae, unet):
        network.to(memory_format=torch.channels_last)
    return tokenizer, vae, unet, text_encoder


def new_controlnet(unet: nn.Module, device: str) -> nn.Module:
    """A ControlNet that starts as a copy of the UNet's encoder."""
    from diffusers import ControlNetModel

    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    return made.to(device, memory_format=torch.channels_last).requires_grad_(True).train()


def build(
    run: Path, minutes: float, n: int, n_inverted: int, device: str = "cpu", stage: Stage = STAGE
) -> None:
    """Train in `run`, from where its last training stopped."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = accelerator_on(device)
    tokenizer, vae, unet, text_encoder = frozen_parts(device)
    edits = [[edit_of(i, e) for e in range(N_EDITS)] for i in range(n)]
    sources = Captions(tokenizer, [of_one[0][0] for of_one in edits])
    targets = Captions(tokenizer, [target for of_one in edits for _, target in of_one])
    pairs = edit_pairs(run, edits, n_inverted, vae, unet, text_encoder, sources, device)
    controlnet = new_controlnet(unet, device)

    # First its layers that read the picture, then the whole, which then has its own state.
    if not (run / f"{stage.name}.safetensors").exists():
        hint = HintLoss(controlnet.controlnet_cond_embedding, unet.conv_in)
        frames, share = frame_sampler(pairs), HINT.share * minutes
        hint.load_state_dict(train(HINT, hint, frames, run, share, accelerator))
    loss = ControlLoss(controlnet, unet, text_encoder).to(device)
    sample = pair_sampler(pairs, targets)
    train(stage, loss, sample, run, stage.share * minutes, accelerator)


def export(run: Path, folder: Path, stage: Stage = STAGE) -> None:
    """Write the averaged weights in fp16, as ControlNetModel.from_pretrained reads them."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    folder_of_unet = Path(miniature_path()) / "unet"
    unet = load_network(UNet2DConditionModel, folder_of_unet, "The miniature's unet")
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    state = load_file(run / f"{stage.name}.safetensors")
    controlnet.load_state_dict(part_of(state, "ema.controlnet."))
    controlnet.half().save_pretrained(folder, safe_serialization=True)


def complete(folder: Path) -> None:
    """Let a checkpoint bring what lies in it: this ControlNet, motion modules, an adapter."""
    brings = [name for name in BROUGHT if (folder / name).is_dir()]
    EditDefaults(**FULL_DEFAULTS, control=ControlSettings(**CONTROL)).save(folder, brings)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.edit_control")
    parser.add_argument("--minutes", type=float, default=60, help="of training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_control"))
    parser.add_argument(
        "--out", type=Path,
        help="the weights (default: `control` in --work); in a checkpoint, it will bring them",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=6000, help="rendered for training")
    parser.add_argument("--inverted", type=int, default=1500, help="of them, give their noise")
    args = parser.parse_args()
    build(args.work, args.minutes, args.frames, args.inverted, named_device(args.device))
    out = args.out or args.work / "control"
    export(args.work, out)
    if (out.parent / "model_index.json").is_file():
        complete(out.parent)


if __name__ == "__main__":
    main()
