"""The recipe of the miniature's video model: `python -m vala_research.miniature.motion`.

An AnimateDiff adapter: attention along the frames, inserted into the frozen image UNet and trained
on sprite clips, so that frames denoised together show one object that moves.

AnimateDiff (Guo et al. 2023, arXiv 2307.04725), section 4.2. Differs from paper: one attention a
module instead of many, the training starts at the image model exactly (the modules' last projection
is zero), and the loss is weighed as the miniature's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from vala_research import InputError, miniature_path
from vala_research.files import written_whole
from vala_research.miniature.configuration import SCHEDULE, training_scene
from vala_research.miniature.objectives import Captions
from vala_research.miniature.training import Stage, train
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE

N_FRAMES = 16  # at most: the length of the positional encoding
LENGTHS = (8, 12, 16)  # of the clips in training
MOTION = dict(
    block_out_channels=(64, 128), motion_layers_per_block=1, motion_mid_block_layers_per_block=1,
    motion_num_attention_heads=4, motion_norm_num_groups=16, motion_max_seq_length=N_FRAMES,
    use_motion_mid_block=True,
)  # fmt: skip
STAGE = Stage("motion", 1.0, batch=2, lr=1.5e-3, weight_decay=0.0)  # batch: clips of 8 frames


def build_adapter() -> nn.Module:
    """A MotionAdapter that changes nothing: its modules' last projections are zero."""
    from diffusers import MotionAdapter

    adapter = MotionAdapter(**MOTION)
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(parameter)
    return adapter


def motion_unet(adapter: nn.Module, model: str | None = None) -> nn.Module:
    """UNetMotionModel: a checkpoint's frozen image UNet around the modules of `adapter`, shared.

    What is trained is the adapter itself; diffusers alone would copy it.
    """
    from diffusers import UNet2DConditionModel, UNetMotionModel

    image = UNet2DConditionModel.from_pretrained(model or miniature_path(), subfolder="unet")
    unet = UNetMotionModel.from_unet2d(image, adapter).requires_grad_(False)
    for block, own in zip(
        [*unet.down_blocks, unet.mid_block, *unet.up_blocks],
        [*adapter.down_blocks, adapter.mid_block, *adapter.up_blocks], strict=True,
    ):  # fmt: skip
        block.motion_modules = own.motion_modules
    return unet


class MotionLoss(nn.Module):
    """Epsilon regression of whole clips, each frame with noise of its own; only the adapter learns.

    Weight: that of the image model, min-SNR-5 times 1 / alpha_bar (see `DenoiserLoss`): at high
    noise, where the layout is decided that the frames have to share, it is x_0 that counts.
    """

    def __init__(self, adapter: nn.Module, unet: nn.Module, text_encoder: nn.Module):
        super().__init__()
        from diffusers import DDIMScheduler

        self.adapter = adapter
        self._frozen = (unet, text_encoder)  # in a tuple: neither averaged nor in a checkpoint
        self.register_buffer("ab", DDIMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)

    def forward(
        self,
        z: Float[Tensor, "b f c h w"],
        eps: Float[Tensor, "b f c h w"],
        t: Int[Tensor, " b"],
        ids: Int[Tensor, "b n"],
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        unet, text_encoder = self._frozen
        ab = self.ab[t][:, None, None, None, None]
        z_t = ab.sqrt() * z + (1 - ab).sqrt() * eps
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state.repeat_interleave(z.shape[1], 0)
        out = unet(z_t.transpose(1, 2), t, text).sample.transpose(1, 2)
        error = (out - eps).square()
        snr = ab / (1 - ab)
        weight = snr.clamp(max=5) / snr / (ab + 0.01)
        return {"loss": (error * weight).mean(), "mse": error.detach().mean()}


@torch.no_grad()
def clip_pool(run: Path, n_clips: int, vae: nn.Module, device: str) -> Float[Tensor, "n f c h w"]:
    """Latents (modes, fp16) of training scenes 0..n-1 as clips of N_FRAMES, kept in `run`."""
    path = run / "clips.safetensors"
    if not path.exists():
        latents = []
        for i in tqdm(range(n_clips), "clips"):
            x = render(training_scene(i), N_FRAMES, SIZE).frames
            x = x.to(device).to(memory_format=torch.channels_last)
            mode = vae.encode(2 * x - 1).latent_dist.mode()
            latents.append((mode * vae.config.scaling_factor).half().cpu())
        with written_whole(path) as unfinished:
            save_file({"latents": torch.stack(latents).contiguous()}, unfinished)
    latents = load_file(path)["latents"]
    if len(latents) != n_clips:
        raise InputError(
            f"{path} holds {len(latents)} clips: ask for those, or name another folder."
        )
    return latents


def clip_sampler(latents: Tensor, captions: Captions, device: str) -> Callable:
    """Clips of 8, 12 or 16 frames: latents, noise, timesteps, captions (10% of them empty).

    Half of the clips run backwards; those of 8 frames may skip every second one. Two thirds of the
    timesteps lie between 0.3 T and 0.75 T, where the frames have to agree on places and shapes;
    half in the second half of the training, which sees more of the low noise that finishes them.
    """
    n_t = SCHEDULE["num_train_timesteps"]
    edges = torch.tensor([0.0, 0.3, 0.75, 1.0])  # of t / n_t

    def sample(batch: int, generator: torch.Generator, progress: float):
        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        f = LENGTHS[below(len(LENGTHS))]
        n = max(1, 8 * batch // f)
        stride = 1 + below((N_FRAMES - 1) // (f - 1))
        frames = below(N_FRAMES - stride * (f - 1)) + stride * torch.arange(f)
        index = torch.randint(len(latents), (n,), generator=generator)
        z = latents[index][:, frames.flip(0) if below(2) else frames].float()
        eps = torch.randn(z.shape, generator=generator)
        strata = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        low = 0.2 if progress < 0.5 else 0.35
        shares = torch.tensor([0.0, low, 0.85, 1.0])  # of the samples below the edges
        i = torch.bucketize(strata, shares[1:-1])
        place = (strata - shares[i]) / (shares[i + 1] - shares[i])
        t = (n_t * torch.lerp(edges[i], edges[i + 1], place)).long().clamp(max=n_t - 1)
        ids = captions.ids(index, generator, dropout=0.1)
        return tuple(x.to(device) for x in (z, eps, t, ids))

    return sample


def build(run: Path, minutes: float, n_clips: int, device: str = "cpu", stage=STAGE) -> None:
    """Train in `run`, from where it was."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    accelerator = Accelerator(cpu=device == "cpu")
    folder = miniature_path()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    vae = vae.to(device, memory_format=torch.channels_last)
    latents = clip_pool(run, n_clips, vae, device)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval()
    adapter = build_adapter()
    unet, text_encoder = motion_unet(adapter).to(device), text_encoder.to(device)
    adapter.requires_grad_(True)
    captions = Captions(tokenizer, [training_scene(i) for i in range(n_clips)])
    loss = MotionLoss(adapter, unet, text_encoder).to(device)
    train(stage, loss, clip_sampler(latents, captions, device), run, minutes, accelerator)


def export(run: Path, folder: Path) -> None:
    """Write the checkpoint's EMA weights in fp16, as MotionAdapter.from_pretrained reads them."""
    adapter, prefix = build_adapter(), "ema.adapter."
    state = load_file(run / f"{STAGE.name}.safetensors")
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    adapter.load_state_dict(state)
    adapter.half().save_pretrained(folder, safe_serialization=True)
    config = folder / "config.json"
    content = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(run / f"{STAGE.name}.csv", folder / "log.csv")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.motion")
    parser.add_argument("--minutes", type=float, default=65, help="of training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_motion"))
    parser.add_argument("--out", type=Path, help="the weights (default: `motion` in --work)")
    parser.add_argument("--clips", type=int, default=6000, help="rendered for training")
    args = parser.parse_args()
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    build(args.work, args.minutes, args.clips, device)
    export(args.work, args.out or args.work / "motion")


if __name__ == "__main__":
    main()
