"""What the miniature is: the configurations of its networks, and its words."""

from __future__ import annotations

import torch
from torch import nn

from vala_research.diffusion.difference import DifferenceEdit
from vala_research.sprites.captions import vocabulary
from vala_research.sprites.scene import SIZE, WORLD, random_scene, split_generator

VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8,
    sample_size=SIZE, mid_block_add_attention=False, scaling_factor=1.0,
)  # fmt: skip
UNET = dict(
    sample_size=SIZE // 4, in_channels=4, out_channels=4, block_out_channels=(64, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1, cross_attention_dim=128, attention_head_dim=2, norm_num_groups=16,
    use_linear_projection=True,
)  # fmt: skip
TEXT = dict(
    hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
    projection_dim=64, max_position_embeddings=32, hidden_act="gelu",
)  # fmt: skip
VISION = dict(
    hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
    projection_dim=64, image_size=56, patch_size=8, hidden_act="gelu",
)  # fmt: skip
FLOW = dict(
    patch_size=(1, 2, 2), num_attention_heads=6, attention_head_dim=32, in_channels=4,
    out_channels=4, text_dim=128, freq_dim=128, ffn_dim=768, num_layers=6, rope_max_seq_len=64,
)  # fmt: skip
# A linear schedule ends at alpha_bar_T = 4e-5, where Stable Diffusion's .0047 would leak the mean
# colour of so small a latent into the first step and tint every sample.
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
    prediction_type="epsilon", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip

# Values of an edit, chosen on validation clips: of the bare checkpoint, and of the one that brings
# a ControlNet, motion modules and a temporal adapter.
DEFAULTS = dict(num_inference_steps=50, guidance_scale=2.0)
FULL_DEFAULTS = dict(num_inference_steps=15, guidance_scale=2.0, attention="own")
FLOW_DEFAULTS = dict(
    num_inference_steps=25, guidance_scale=2.0, attention="extended",
    inversion=DifferenceEdit(1.0, source_guidance=1.0),
)  # fmt: skip
CONTROL = dict(picture="frames", scale=1.5, in_inversion=False)


def training_scene(index: int):
    """Scene `index` of the training split."""
    return random_scene(split_generator("train", index), world=WORLD)


def build_vae() -> nn.Module:
    """Build an AutoencoderKL with a near-linear start."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**VAE)
    for name, module in vae.named_modules():
        if name.endswith("conv2"):  # residual branches start closed, which trains faster
            nn.init.zeros_(module.weight)
    return vae.to(memory_format=torch.channels_last)


def build_tokenizer():
    """Build a CLIPTokenizer in which every word of the sprite world is one token."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",.!?'-0123456789")
    tokens = letters + [f"{c}</w>" for c in letters]
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:  # from the right, so that endings are shared
            merges[(parts[-2], parts[-1])] = None
            parts[-2:] = [parts[-2] + parts[-1]]
            tokens.append(parts[-1])
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), *special])}
    return CLIPTokenizer(
        vocab=vocab, merges=list(merges), unk_token="<|endoftext|>", pad_token="<|endoftext|>",
        model_max_length=TEXT["max_position_embeddings"],
    )  # fmt: skip


def text_config(tokenizer) -> dict:
    """TEXT, and the tokenizer's size and special tokens."""
    return TEXT | dict(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def build_clip(tokenizer) -> nn.Module:
    """Build a CLIPModel with a vision tower of 50 tokens: 7 x 7 patches and the class token."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config=text_config(tokenizer), vision_config=VISION, projection_dim=64)
    model = CLIPModel(config)
    nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.5)
    return model


def build_denoiser(tokenizer) -> tuple[nn.Module, nn.Module]:
    """Build the UNet and its text encoder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**text_config(tokenizer)))
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.5)
    unet = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)  # 1.7 times faster
    start_near_identity(unet)
    return unet, text


@torch.no_grad()
def start_near_identity(unet: nn.Module, reference: float = 5.0) -> None:
    """Make an untrained UNet predict eps = z_t, exactly up to the fluctuation of a GroupNorm.

    At high noise z_t is the answer, up to a small correction that holds the colours. A network on
    16 x 16 latents cannot learn to copy well by itself. The last GroupNorm divides by its group's
    own variance over 256 sites, which fluctuates by 9%. So a floor of 0.002 stays in the error of
    eps, ten times what is to be predicted at t = 900.

    Here four groups hold (z, -z, K, -K). The constants K pin the variance, and the floor falls to
    1e-5. The copy survives the last nonlinearity because silu(x) - silu(-x) = x. The path is
    conv_in, the outermost skip, the last resnet's shortcut, conv_norm_out, conv_out. All of it
    stays trainable.
    """
    into, out, norm = unet.conv_in, unet.conv_out, unet.conv_norm_out
    per_group = norm.num_channels // norm.num_groups

    # Close what would add to the copy.
    last = unet.up_blocks[-1]
    resnet, n_above = last.resnets[-1], last.resnets[-1].in_channels - into.out_channels
    for zeroed in (resnet.conv2, last.attentions[-1].proj_out, out):
        nn.init.zeros_(zeroed.weight)
        nn.init.zeros_(zeroed.bias)

    # One group per latent channel: (z, -z, K, -K), undone by conv_out.
    scale = ((1 + reference**2) / 2) ** 0.5
    for c in range(unet.config.in_channels):
        first = c * per_group
        channels = range(first, first + per_group)
        into.weight[channels], resnet.conv_shortcut.weight[channels] = 0.0, 0.0
        resnet.conv_shortcut.bias[channels] = 0.0
        into.bias[channels] = torch.tensor([0.0, 0.0, reference, -reference])
        for sign, channel in ((1.0, first), (-1.0, first + 1)):
            into.weight[channel, c, 1, 1] = sign
            out.weight[c, channel, 1, 1] = sign
        for channel in channels:
            resnet.conv_shortcut.weight[channel, n_above + channel] = 1.0
        norm.weight[channels] = scale


@torch.no_grad()
def build_transformer(reference: float = 1.0) -> nn.Module:
    """Build a WanTransformer3DModel whose untrained output is zero and whose tokens can be copied.

    A velocity is mostly a copy of the noisy latent, which the LayerNorm before the output divides
    by the token's own spread. Here 32 channels hold (z, -z) and the others constants of both signs,
    which pin that spread. All of it stays trainable.
    """
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(**FLOW)
    weight, bias = model.patch_embedding.weight, model.patch_embedding.bias
    n, width = weight[0].numel(), len(weight)
    copy = torch.eye(n).view(n, *weight.shape[1:])
    weight.zero_()
    weight[:n], weight[n : 2 * n] = copy, -copy
    bias.zero_()
    bias[2 * n :] = reference * torch.tensor([1.0, -1.0]).repeat((width - 2 * n) // 2)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model
