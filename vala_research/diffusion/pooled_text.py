"""Stable Diffusion XL reads a pooled text and sizes beside its text.

Podell et al. 2023 (arXiv 2307.01952), section 2.2. The pooled text travels as the last row of the
text embeddings, filled up with zeros to their width, and is taken off where a network is called.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def reads_pooled(network: nn.Module) -> bool:
    """Whether a UNet or ControlNet is that of Stable Diffusion XL."""
    return network.config.get("addition_embed_type") == "text_time"


def with_pooled(
    text: Float[Tensor, "g n d"], pooled: Float[Tensor, "g e"]
) -> Float[Tensor, "g m d"]:
    """The text embeddings with the pooled text as their last row."""
    return torch.cat([text, F.pad(pooled, (0, text.shape[-1] - pooled.shape[-1]))[:, None]], dim=1)


def conditions(
    network: nn.Module, rows: Float[Tensor, "r m d"], size: tuple[int, int]
) -> dict[str, Any]:
    """Arguments of a network that its text gives, one row per picture.

    size: height and width of the pictures in pixels: whole pictures, of their original size.
    """
    if not reads_pooled(network):
        return {"encoder_hidden_states": rows}
    n_times = 6 * network.config.addition_time_embed_dim
    n_pooled = network.config.projection_class_embeddings_input_dim - n_times
    times = torch.tensor([*size, 0, 0, *size], dtype=rows.dtype, device=rows.device)
    added = {"text_embeds": rows[:, -1, :n_pooled], "time_ids": times.expand(len(rows), -1)}
    return {"encoder_hidden_states": rows[:, :-1], "added_cond_kwargs": added}
