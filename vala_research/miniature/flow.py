"""The recipe of the miniature's flow model: `python -m vala_research.miniature.flow`.

A video transformer of Wan's class (Wan 2.1, arXiv 2503.20314) in the miniature's own latent space:
its VAE encodes frame by frame, its text encoder reads the prompts. The transformer predicts the
velocity v = n - z_0 at z_s = (1 - s) z_0 + s n, for single frames and for clips.

A teacher shortens the training: of single frames, the frozen UNet says a part of the velocity. Its
noise eps at the level of equal signal-to-noise ratio gives v without the spread of one drawn noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from vala_research import miniature_path
from vala_research.diffusion.loading import load_network
from vala_research.editing.defaults import EditDefaults
from vala_research.files import write_json
from vala_research.miniature.batches import Captions
from vala_research.miniature.configuration import (
    FLOW_DEFAULTS,
    build_transformer,
    training_scene,
)
from vala_research.miniature.feeding import accelerator_on
from vala_research.miniature.motion import N_FRAMES, clip_pool
from vala_research.miniature.objectives import EpsilonLoss, focus_of
from vala_research.miniature.training import Stage, named_device, part_of, train

STAGE = Stage("flow", 1.0, batch=32, lr=2e-3, ema=0.998, gpu_batch=1024, weight_decay=0.0)  # frames
# From these shares of the training on, so many of four batches hold clips and not single frames.
CLIPS = {0.0: 0, 0.4: 3, 0.5: 2}
TAUGHT = 0.75, 0.4  # share of the teacher in the velocity of single frames: at first, and at least
INDEX = {
    "_class_name": "WanPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


class FlowLoss(EpsilonLoss):
    """Velocity regression of the transformer; of single frames also against the UNet's velocity.

    Sites at and around the object count more at first, as for the UNet.
    """

    def __init__(self, transformer: nn.Module, unet: nn.Module, text_encoder: nn.Module):
        super().__init__(unet, text_encoder)
        self.transformer = transformer

    def forward(
        self,
        z: Float[Tensor, "b f c h w"],
        noise: Float[Tensor, "b f c h w"],
        s: Float[Tensor, " b"],
        ids: Int[Tensor, "b n"],
        site_mask: Float[Tensor, "b f 1 h w"],
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        unet, text_encoder = self._frozen
        level = s.view(-1, 1, 1, 1, 1)
        z_s, target = torch.lerp(z, noise, level), noise - z
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state
            if z.shape[1] == 1:
                learnt = self.taught(unet, z_s[:, 0], s, text)[:, None]
                share = max(TAUGHT[0] * (1 - 2 * progress), TAUGHT[1]) * (level < 0.97)
                target = torch.lerp(target, learnt, share)
            text = read_text(text, ids, text_encoder.config.eos_token_id)
        out = self.transformer(z_s.transpose(1, 2), 1000 * s, text, return_dict=False)[0]
        error = (out.transpose(1, 2) - target).square()
        focus = focus_of(site_mask.flatten(0, 1), 3.0, progress).view_as(site_mask)
        return {"loss": (error * focus).mean(), "mse": error.detach().mean()}

    def taught(self, unet: nn.Module, z_s: Tensor, s: Tensor, text: Tensor) -> Tensor:
        """The UNet's velocity at the nearest timestep of equal signal-to-noise ratio."""
        signal = ((1 - s) / torch.hypot(1 - s, s)).square()
        t = (self.ab - signal[:, None]).abs().argmin(1)
        ab = self.ab[t].view(-1, 1, 1, 1)
        s = s.view(-1, 1, 1, 1)
        z_t = (z_s / torch.hypot(1 - s, s)).to(memory_format=torch.channels_last)
        eps = unet(z_t, t, text).sample
        return eps - (z_t - (1 - ab).sqrt() * eps) / ab.sqrt()


def read_text(
    text: Float[Tensor, "b n d"], ids: Int[Tensor, "b n"], end: int
) -> Float[Tensor, "b n d"]:
    """The text with zeros behind the end token, as Wan's pipelines give it to the transformer."""
    behind = (ids == end).cumsum(1) - (ids == end).int() > 0
    return text.masked_fill(behind[..., None], 0.0)


def sampler(pool: dict[str, Tensor], captions: Captions) -> Callable:
    """Draw latents (b f c h w), noise, levels, captions (10% of them empty) and object masks.

    A batch holds about as many frames whatever their number: single frames at first; later mostly
    clips of 8 or 16 frames, half of them backwards. Clips of 8 frames may skip every second frame.
    Levels are logit-normal (Esser et al. 2024, arXiv 2403.03206), one per stratum. Clips and the
    second mode of single frames see more noise, where colours and places are decided.
    """
    latents, masks = pool["latents"], pool["mask"]

    def sample(batch: int, generator: torch.Generator, progress: float):
        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        n_of_four = next(n for start, n in reversed(CLIPS.items()) if progress >= start)
        is_clip = below(4) < n_of_four
        f = (8, 16)[below(2)] if is_clip else 1
        n = max(1, batch // f) if is_clip else batch // 2
        index = torch.randint(len(latents), (n,), generator=generator)
        if is_clip:
            stride = 1 + below((N_FRAMES - 1) // (f - 1))
            frames = below(N_FRAMES - stride * (f - 1)) + stride * torch.arange(f)
            frames = (frames.flip(0) if below(2) else frames).expand(n, f)
        else:
            frames = torch.randint(N_FRAMES, (n, 1), generator=generator)
        z, mask = latents[index[:, None], frames].float(), masks[index[:, None], frames].float()

        strata = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        s = torch.sigmoid(torch.special.ndtri(strata) + 0.4)
        noise = torch.randn(z.shape, generator=generator)
        ids = captions.ids(index, generator, dropout=0.1)
        return z, noise, s, ids, mask / 255

    return sample


def build(run: Path, minutes: float, n_clips: int, device: str = "cpu", stage=STAGE) -> None:
    """Train in `run`, from where its last training stopped."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = accelerator_on(device)
    folder = Path(miniature_path())
    vae, unet, text_encoder = (
        load_network(cls, folder / name, f"The miniature's {name}").to(device)
        for cls, name in (
            (AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder"),
        )
    )  # fmt: skip
    pool = clip_pool(run, n_clips, vae.to(memory_format=torch.channels_last), device)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    captions = Captions(tokenizer, [training_scene(i) for i in range(n_clips)])
    unet = unet.to(memory_format=torch.channels_last)
    loss = FlowLoss(build_transformer().to(device), unet, text_encoder).to(device)
    train(stage, loss, sampler(pool, captions), run, minutes, accelerator)


def export(run: Path, folder: Path) -> None:
    """Write a checkpoint: the averaged weights in fp16, in the layout of a WanPipeline.

    Its VAE and its words are the miniature's, which lie in the miniature's own folder.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    transformer, state = build_transformer(), load_file(run / f"{STAGE.name}.safetensors")
    transformer.load_state_dict(part_of(state, "ema.transformer."))
    transformer.half().save_pretrained(folder / "transformer", safe_serialization=True)
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    for config in folder.rglob("*.json"):
        content = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        write_json(config, content)
    write_json(folder / "model_index.json", INDEX)
    EditDefaults(**FLOW_DEFAULTS).save(folder)
    shutil.copyfile(run / f"{STAGE.name}.csv", folder / "log.csv")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.flow")
    parser.add_argument("--minutes", type=float, default=200, help="of training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_flow"))
    parser.add_argument("--out", type=Path, help="the weights (default: `flow` in --work)")
    parser.add_argument("--clips", type=int, default=6000, help="rendered for training")
    args = parser.parse_args()
    build(args.work, args.minutes, args.clips, named_device(args.device))
    export(args.work, args.out or args.work / "flow")


if __name__ == "__main__":
    main()
