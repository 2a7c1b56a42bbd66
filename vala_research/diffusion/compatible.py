"""Which networks a pipeline can be made of, by their configurations."""

from typing import Any

from vala_research import InputError
from vala_research.diffusion.pooled_text import reads_pooled
from vala_research.diffusion.records import RECORDS, record_of, text_width
from vala_research.diffusion.solvers import check_scheduler
from vala_research.diffusion.vae import latent_channels

STABLE_DIFFUSION = "give one of Stable Diffusion 1.x, 2.x or XL."
# What the configuration of each network must hold one of.
NEEDED = {
    "vae": ("latent_channels", "z_dim"), "text_encoder": ("hidden_size", "d_model"),
    "unet": tuple({record.text_width for record in RECORDS.values()}),
}  # fmt: skip


def check_networks(
    vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any,
    text_encoder_2: Any = None, tokenizer_2: Any = None, text_encoder_3: Any = None,
    tokenizer_3: Any = None,
) -> None:  # fmt: skip
    """Check that the parts of a pipeline can work together. None is a part that is left out.

    Raises InputError.
    """
    for name, part in (("vae", vae), ("text_encoder", text_encoder), ("unet", unet)):
        config = getattr(part, "config", None)
        if part is not None and not any(hasattr(config, key) for key in NEEDED[name]):
            raise InputError(
                f"The {name} is a {type(part).__name__}: give the network itself, of the class "
                "that a checkpoint of a known family has."
            )
    if (text_encoder_2 is None) != (tokenizer_2 is None):
        raise InputError("One of text_encoder_2 and tokenizer_2 is given: give both, or none.")
    if tokenizer is not None and not callable(tokenizer):
        raise InputError(f"The tokenizer is a {type(tokenizer).__name__}: give a CLIPTokenizer.")
    if scheduler is not None:
        check_scheduler(scheduler)
    if unet is not None:
        check_unet(unet)
        _check_pair(vae, text_encoder, unet, text_encoder_2)


def check_unet(unet: Any) -> None:
    """Refuse UNets that read more than latents, a timestep and text. Raises InputError."""
    if not record_of(unet).is_unet:
        return
    config = unet.config
    added, hidden = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    reason = None
    if config.get("time_cond_proj_dim") is not None:
        reason = (
            "a latent consistency model, which reads the guidance scale (time_cond_proj_dim): load "
            "an LCM-LoRA into Stable Diffusion instead, or"
        )
    elif added not in (None, "text_time"):
        reason = f"a model that reads more than text (addition_embed_type {added!r}):"
    elif hidden not in (None, "text_proj", "ip_image_proj"):
        reason = f"a model that reads pictures (encoder_hid_dim_type {hidden!r}):"
    elif config.get("class_embed_type") or config.get("num_class_embeds"):
        reason = "a model that reads classes or noise levels (class_embed_type):"
    if reason is not None:
        raise InputError(f"The UNet is that of {reason} {STABLE_DIFFUSION}")


def _check_pair(vae: Any, text_encoder: Any, unet: Any, text_encoder_2: Any = None) -> None:
    """Check the widths in which a UNet meets the VAE and the text encoders."""
    if vae is not None and unet.config.in_channels != latent_channels(vae):
        raise InputError(
            f"The UNet reads {unet.config.in_channels} channels and the VAE makes "
            f"{latent_channels(vae)}: checkpoints of inpainting, depth, or image to video are not "
            "supported, give a text-to-image or text-to-video one."
        )
    check_text(text_encoder, unet, "The UNet", text_encoder_2)


def check_text(text_encoder: Any, unet: Any, name: str, text_encoder_2: Any = None) -> None:
    """Check that a UNet reads text of the width that its encoders make; name: of the UNet.

    Raises InputError, also for one of Stable Diffusion XL without a second text encoder.
    """
    reads_two = reads_pooled(unet) or record_of(unet).joins_texts
    if text_encoder is not None and reads_two != (text_encoder_2 is not None):
        has, needs = ("one text encoder", "two") if reads_two else ("two", "one")
        raise InputError(
            f"{name} has {has} and needs {needs}: give the tokenizers and text encoders of its own "
            "checkpoint."
        )
    if record_of(unet).joins_texts:  # both are filled up to the width of a third
        return
    width = unet.config.get("encoder_hid_dim") or text_width(unet)
    encoders = [x for x in (text_encoder, text_encoder_2) if x is not None]
    sizes = [getattr(encoder.config, "hidden_size", None) for encoder in encoders]
    made = sum(sizes) if sizes and None not in sizes else None
    if isinstance(width, int) and made is not None and made != width:
        raise InputError(
            f"{name} reads text of width {width} and gets {made}: give it the tokenizer and "
            "text_encoder of its own checkpoint."
        )
