"""The recipe of the miniature's video model: `python -m vala_research.miniature.motion`.

An AnimateDiff adapter is attention along the frames, inserted into the frozen image UNet. It is
trained on sprite clips, so that frames denoised together show one object that moves.

AnimateDiff (Guo et al. 2023, arXiv 2307.04725), section 4.2. Differs from paper:
* one attention per module instead of many;
* the training starts exactly at the image model: the modules' last projection is zero;
* the loss has the weights of the miniature's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from vala_research import InputError, miniature_path
from vala_research.diffusion.loading import load_network
from vala_research.files import write_json, write_tensors
from vala_research.miniature.batches import Captions, rendered, timesteps
from vala_research.miniature.configuration import training_scene
from vala_research.miniature.feeding import accelerator_on
from vala_research.miniature.objectives import EpsilonLoss, weight_of
from vala_research.miniature.training import Stage, named_device, part_of, train
from vala_research.sprites.scene import SIZE

N_FRAMES = 16  # at most: the length of the positional encoding
LENGTHS = (8, 12, 16)  # of the clips in training
MOTION = dict(
    block_out_channels=(64, 128), motion_layers_per_block=1, motion_mid_block_layers_per_block=1,
    motion_num_attention_heads=4, motion_norm_num_groups=16, motion_max_seq_length=N_FRAMES,
    use_motion_mid_block=True,
)  # fmt: skip
# The batches are clips of 8 frames.
STAGE = Stage("motion", 1.0, batch=2, lr=1.5e-3, weight_decay=0.0, gpu_batch=64)


def build_adapter() -> nn.Module:
    """Build a MotionAdapter that changes nothing: its modules' last projections are zero."""
    from diffusers import MotionAdapter

    adapter = MotionAdapter(**MOTION)
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(parameter)
    return adapter


def motion_unet(adapter: nn.Module, model: str | None = None) -> nn.Module:
    """Build a UNetMotionModel: a checkpoint's frozen image UNet around the modules of `adapter`.

    The modules are shared, so training the UNet trains `adapter`. diffusers alone copies them.
    """
    from diffusers import UNet2DConditionModel, UNetMotionModel

    folder = Path(model or miniature_path()) / "unet"
    image = load_network(UNet2DConditionModel, folder, f"The UNet of {folder}")
    unet = UNetMotionModel.from_unet2d(image, adapter).requires_grad_(False)
    for block, own in zip(
        [*unet.down_blocks, unet.mid_block, *unet.up_blocks],
        [*adapter.down_blocks, adapter.mid_block, *adapter.up_blocks], strict=True,
    ):  # fmt: skip
        block.motion_modules = own.motion_modules
    return unet


class MotionLoss(EpsilonLoss):
    """Epsilon regression of whole clips, each frame with its own noise; only the adapter learns.

    The image model's weights (`weight_of`): at high noise, where the frames have to agree on the
    layout, x_0 counts.
    """

    def __init__(self, adapter: nn.Module, unet: nn.Module, text_encoder: nn.Module):
        super().__init__(unet, text_encoder)
        self.adapter = adapter

    def forward(
        self,
        z: Float[Tensor, "b f c h w"],
        eps: Float[Tensor, "b f c h w"],
        t: Int[Tensor, " b"],
        ids: Int[Tensor, "b n"],
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        unet, text_encoder = self._frozen
        z_t, ab = self.noised(z, eps, t)
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state.repeat_interleave(z.shape[1], 0)
        out = unet(z_t.transpose(1, 2), t, text).sample.transpose(1, 2)
        error = (out - eps).square()
        return {"loss": (error * weight_of(ab)).mean(), "mse": error.detach().mean()}


@torch.no_grad()
def clip_pool(run: Path, n_clips: int, vae: nn.Module, device: str) -> dict[str, Tensor]:
    """Encode training scenes 0..n-1 as clips of N_FRAMES, which stay in `run`.

    Returns latents (n f c h w, modes, fp16) and mask (n f 1 h w, uint8), the object's share of a
    latent site. Raises InputError when `run` holds another number of clips.
    """
    path = run / "clips.safetensors"
    if not path.exists():
        latents, masks = [], []
        for clips, shown in tqdm(rendered(n_clips, N_FRAMES, chunk=10), "clips"):
            x = clips.flatten(0, 1).to(device).to(memory_format=torch.channels_last)
            mode = vae.encode(x / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
            latents.append(mode.unflatten(0, clips.shape[:2]).half().cpu())
            share = F.avg_pool2d(shown.flatten(0, 1), SIZE // mode.shape[-1])
            masks.append(share.unflatten(0, clips.shape[:2]).mul(255).round().byte())
        write_tensors(path, {"latents": torch.cat(latents), "mask": torch.cat(masks)})
    pool = load_file(path)
    if len(pool["latents"]) != n_clips:
        raise InputError(
            f"{path} holds {len(pool['latents'])} clips: ask for those, or name another folder."
        )
    return pool


def clip_sampler(latents: Tensor, captions: Captions) -> Callable:
    """Draw clips of 8, 12 or 16 frames: latents, noise, timesteps, captions (10% of them empty).

    Half of the clips run backwards. Clips of 8 frames may skip every second frame. Between 0.3 T
    and 0.75 T the frames have to agree on places and shapes. Two thirds of the timesteps lie there
    at first, and half of them in the second half of the training, which sees more of the low noise
    that finishes the shapes.
    """
    def sample(batch: int, generator: torch.Generator, progress: float):
        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        # Which frames of which clips; a batch holds about as many frames whatever their length.
        f = LENGTHS[below(len(LENGTHS))]
        n = max(1, 8 * batch // f)
        stride = 1 + below((N_FRAMES - 1) // (f - 1))
        frames = below(N_FRAMES - stride * (f - 1)) + stride * torch.arange(f)
        index = torch.randint(len(latents), (n,), generator=generator)
        z = latents[index][:, frames.flip(0) if below(2) else frames].float()

        # Noise levels, one per stratum, in random order.
        eps = torch.randn(z.shape, generator=generator)
        strata = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        low = 0.2 if progress < 0.5 else 0.35
        t = timesteps(strata, [0.0, 0.3, 0.75, 1.0], [0.0, low, 0.85, 1.0])
        ids = captions.ids(index, generator, dropout=0.1)
        return z, eps, t, ids

    return sample


def build(run: Path, minutes: float, n_clips: int, device: str = "cpu", stage=STAGE) -> None:
    """Train in `run`, from where its last training stopped."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = accelerator_on(device)
    folder = Path(miniature_path())
    vae = load_network(AutoencoderKL, folder / "vae", "The miniature's VAE")
    vae = vae.to(device, memory_format=torch.channels_last)
    latents = clip_pool(run, n_clips, vae, device)["latents"]
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = load_network(CLIPTextModel, folder / "text_encoder", "The miniature's words")
    adapter = build_adapter()
    unet, text_encoder = motion_unet(adapter).to(device), text_encoder.to(device)
    adapter.requires_grad_(True)
    captions = Captions(tokenizer, [training_scene(i) for i in range(n_clips)])
    loss = MotionLoss(adapter, unet, text_encoder).to(device)
    train(stage, loss, clip_sampler(latents, captions), run, minutes, accelerator)


def export(run: Path, folder: Path) -> None:
    """Write the averaged weights in fp16, as MotionAdapter.from_pretrained reads them."""
    adapter, state = build_adapter(), load_file(run / f"{STAGE.name}.safetensors")
    adapter.load_state_dict(part_of(state, "ema.adapter."))
    adapter.half().save_pretrained(folder, safe_serialization=True)
    config = folder / "config.json"
    content = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    write_json(config, content)
    shutil.copyfile(run / f"{STAGE.name}.csv", folder / "log.csv")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.motion")
    parser.add_argument("--minutes", type=float, default=65, help="of training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_motion"))
    parser.add_argument("--out", type=Path, help="the weights (default: `motion` in --work)")
    parser.add_argument("--clips", type=int, default=6000, help="rendered for training")
    args = parser.parse_args()
    build(args.work, args.minutes, args.clips, named_device(args.device))
    export(args.work, args.out or args.work / "motion")


if __name__ == "__main__":
    main()
