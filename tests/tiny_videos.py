"""Tiny checkpoints of video transformers, as diffusers saves them: random, genuine classes."""

from pathlib import Path

from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)
from tiny_models import WORDS, tiny_ltx, tiny_sd3, tiny_sdxl_checkpoint, tiny_wan
from transformers import (
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

T5 = dict(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
SHIFT = 3.0


def tiny_tokenizer() -> T5TokenizerFast:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(vocab=special + [(f"▁{w}", -1.0) for w in dict.fromkeys(WORDS)])


def tiny_wan_vae() -> AutoencoderKLWan:
    """Two pixels a site; 1 frame, then 4 frames at a time, each group two latent frames."""
    return AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[2.0, 1.0, 1.5, 0.5],
        scale_factor_temporal=2, scale_factor_spatial=2,
    ).eval()  # fmt: skip


def tiny_wan_checkpoint(folder: Path, experts: int = 1) -> Path:
    """A WanPipeline; with two experts as in Wan 2.2."""
    tokenizer = tiny_tokenizer()
    text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **T5)).eval()
    low = {"transformer_2": tiny_wan(num_layers=1), "boundary_ratio": 0.5} if experts == 2 else {}
    WanPipeline(
        tokenizer, text_encoder, tiny_wan_vae(), FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        tiny_wan(), **low,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def tiny_ltx_checkpoint(folder: Path) -> Path:
    """An LTXPipeline, whose scheduler shifts its levels by the number of tokens."""
    tokenizer = tiny_tokenizer()
    text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5)).eval()
    widths = dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), (8,) * 4)
    layers = dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1,) * 5)
    scaled = (True, True, False, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, patch_size=1, spatio_temporal_scaling=scaled, **widths, **layers,
        decoder_spatio_temporal_scaling=scaled, decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.1, base_shift=0.95, max_shift=2.05,
        base_image_seq_len=1024, max_image_seq_len=4096,
    )  # fmt: skip
    LTXPipeline(scheduler, vae, text_encoder, tokenizer, tiny_ltx()).save_pretrained(folder)
    return folder


def tiny_sd3_checkpoint(folder: Path, has_t5: bool = True) -> Path:
    """A StableDiffusion3Pipeline: the words of a tiny Stable Diffusion XL beside a tiny T5."""
    xl = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_checkpoint(folder / "xl"))
    tokenizer = tiny_tokenizer()
    widths = [x.config.hidden_size for x in (xl.text_encoder, xl.text_encoder_2)]
    pooled = 2 * xl.text_encoder_2.config.projection_dim
    d = max(32, pooled)
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5 | {"d_model": d})).eval()
    assert sum(widths) <= d
    first = type(xl.text_encoder_2)(xl.text_encoder_2.config).eval()
    StableDiffusion3Pipeline(
        tiny_sd3(joint_attention_dim=d, pooled_projection_dim=pooled),
        FlowMatchEulerDiscreteScheduler(shift=SHIFT), xl.vae, first, xl.tokenizer,
        xl.text_encoder_2, xl.tokenizer_2, t5 if has_t5 else None,
        tokenizer if has_t5 else None,
    ).save_pretrained(folder / "sd3")  # fmt: skip
    return folder / "sd3"
