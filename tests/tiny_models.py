"""Small stand-ins for real models: random UNets of three classes, a checkpoint, a known score.

Nothing here is trained: the tests that use it check structure (what equals what), not quality.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LTXVideoTransformer3DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from vala_research.diffusion.level import Level
from vala_research.diffusion.pooled_text import with_pooled

N_TOKENS, D_TEXT = 12, 16
WORDS = "a red blue circle square moves over the grey background slowly".split()
SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def tiny_unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    """The class of Stable Diffusion 1.5, four latent channels, two levels."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": D_TEXT,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def tiny_sdxl_unet() -> tuple[UNet2DConditionModel, dict[str, torch.Tensor]]:
    """The class of SDXL: linear projections, added text and time conditions (one row given)."""
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 10,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )
    generator = torch.Generator().manual_seed(1)
    added = {
        "text_embeds": torch.randn(1, 10, generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
    }
    return unet, added


def packed(text: torch.Tensor, added: dict[str, torch.Tensor] | None) -> torch.Tensor:
    """Text ... n d with SDXL's pooled text as its last row, where there is one."""
    if added is None:
        return text
    rows = text.flatten(0, -3)
    pooled = added["text_embeds"].to(text)
    return with_pooled(rows, pooled.expand(len(rows), -1)).unflatten(0, text.shape[:-2])


def tiny_motion_unet(is_identity: bool = False) -> UNetMotionModel:
    """The class of AnimateDiff; `is_identity` zeroes the motion modules' outputs.

    A MotionAdapter is not zero-initialised, so that without it even frames of noise would mix.
    """
    adapter = tiny_motion_adapter()
    unet = UNetMotionModel.from_unet2d(tiny_unet(), adapter).eval().requires_grad_(False)
    if is_identity:
        for name, parameter in unet.named_parameters():
            if "motion_modules" in name and ".proj_out." in name:
                parameter.zero_()
    return unet


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows WORDS whole, and every letter."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    vocab = [*letters, *(c + "</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:  # as the tokenizer will, oldest first
            i = 0
            while i + 1 < len(pieces):
                if (pieces[i], pieces[i + 1]) == pair:
                    pieces[i : i + 2] = ["".join(pair)]
                i += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab.append(pieces[0])
    vocab = [*dict.fromkeys(vocab), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=N_TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tiny_checkpoint(folder: Path) -> Path:
    """A random checkpoint of the Stable Diffusion 1.5 class, saved by plain diffusers."""
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    torch.manual_seed(3)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=D_TEXT,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=N_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=3.5,  # latents of about unit deviation
    ).eval()
    unet = tiny_unet(4, sample_size=64)  # the pipeline "corrects" smaller sample sizes
    # A random network is far steeper than a trained one: flatten it, so that its steps are
    # invertible.
    unet.conv_out.weight.mul_(0.2)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(set_alpha_to_one=False, **SD_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def tiny_sdxl_checkpoint(folder: Path) -> Path:
    """A random checkpoint of the Stable Diffusion XL class, saved by plain diffusers."""
    small = StableDiffusionPipeline.from_pretrained(tiny_checkpoint(folder / "small"))
    torch.manual_seed(5)
    config = small.text_encoder.config.to_dict() | {"projection_dim": 10}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    unet = tiny_unet(
        6, sample_size=64, cross_attention_dim=2 * D_TEXT, addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=4 * 6 + 10,
        use_linear_projection=True, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    unet.conv_out.weight.mul_(0.2)
    pipe = StableDiffusionXLPipeline(
        small.vae, small.text_encoder, second, small.tokenizer, small.tokenizer, unet,
        small.scheduler, add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "xl")
    return folder / "xl"


class GaussianMixture:
    """A denoiser whose score is known: x0 from a mixture of isotropic Gaussians, in closed form.

    z = a x0 + b n is a mixture of N(a m_k, v I), v = a^2 s^2 + b^2; its posterior mean of x0 is
    sum_k w_k(z) (m_k + a s^2 / v (z - a m_k)). Without alpha_bar, timestep t is level t / 1000 of a
    rectified flow.
    """

    def __init__(self, alpha_bar: tuple[float, ...], prediction_type: str = "epsilon"):
        generator = torch.Generator().manual_seed(5)
        self.means = torch.randn(3, 6, generator=generator, dtype=torch.float64)  # k d
        self.deviation, self.alpha_bar, self.kind = 0.5, alpha_bar, prediction_type
        self.n_calls = 0

    def draw(self, n: int) -> torch.Tensor:
        """n clean samples, n d."""
        generator = torch.Generator().manual_seed(6)
        noise = torch.randn(n, 6, generator=generator, dtype=torch.float64)
        return self.means[torch.arange(n) % 3] + self.deviation * noise

    def __call__(self, z: torch.Tensor, t: int) -> torch.Tensor:
        """The prediction at (z_t, t); z: n d."""
        self.n_calls += 1
        level = Level.preserving(self.alpha_bar[t]) if self.alpha_bar else Level.flow(t / 1000)
        a, b = level.a, level.b
        v = a**2 * self.deviation**2 + b**2
        means = self.means.to(z)
        offset = z[:, None] - a * means  # n k d
        w = torch.softmax(-offset.square().sum(-1) / (2 * v), dim=1)[..., None]
        x0 = (w * (means + a * self.deviation**2 / v * offset)).sum(1)
        p, q = level.predicted(self.kind)
        return p * x0 + q * (z - a * x0) / b


def tiny_motion_adapter() -> MotionAdapter:
    """Motion modules for `tiny_unet`, not zero: frames mix."""
    torch.manual_seed(2)
    return MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=16,
    ).requires_grad_(False)


def tiny_unet3d() -> UNet3DConditionModel:
    """The class of ModelScope's text-to-video model."""
    torch.manual_seed(7)
    unet = UNet3DConditionModel(
        sample_size=64,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=D_TEXT,
    )
    for name, module in unet.named_modules():  # these start at zero, and would leave time out
        if name.endswith(("conv4.3", "proj_out")):
            torch.nn.init.normal_(module.weight, std=0.1)
    return unet.eval().requires_grad_(False)


def tiny_wan(**changes) -> WanTransformer3DModel:
    """A video transformer of Wan's class, with random weights; its latents are `tiny_vae`'s."""
    torch.manual_seed(0)
    config = dict(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return WanTransformer3DModel(**config | changes).eval().requires_grad_(False)


def tiny_ltx(**changes) -> LTXVideoTransformer3DModel:
    """A video transformer of LTX's class, with random weights."""
    torch.manual_seed(0)
    config = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=2, caption_channels=16,
    )  # fmt: skip
    return LTXVideoTransformer3DModel(**config | changes).eval().requires_grad_(False)


def tiny_sd3(**changes) -> SD3Transformer2DModel:
    """An image transformer of Stable Diffusion 3's class, with random weights."""
    torch.manual_seed(0)
    config = dict(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return SD3Transformer2DModel(**config | changes).eval().requires_grad_(False)
