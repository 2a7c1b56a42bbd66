"""PickScore: what people would pick, by a CLIP that was trained on their choices.

Kirstain et al., NeurIPS 2023. CLIP-H; 4 GB on the hub, whose tokenizer is that of its base model.
"""

import os

from jaxtyping import Float
from torch import Tensor

from vala_research import miniature_path
from vala_research.evaluation.checks import checked
from vala_research.evaluation.clip_scores import ClipScorer

WEIGHTS, TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def pickscore(
    frames: Float[Tensor, "..."],
    prompt: str,
    clip: str | os.PathLike | ClipScorer = WEIGHTS,
    tokenizer: str | os.PathLike | None = None,
) -> float:
    """exp(logit_scale) x mean over frames of cos(image, prompt); larger is better.

    In [-100, 100] where the scale is CLIP's 100; about 20 for photographs, the difference of two
    edits counts. clip: PickScore_v1 in safetensors, by folder or hub id; tokenizer: its own folder
    or hub id, by default beside the weights (of the hub's PickScore_v1: its base model's).
    Raises InputError when there are no such weights.
    """
    frames = checked(frames)
    if not isinstance(clip, ClipScorer):
        if tokenizer is None and str(clip) == WEIGHTS:
            tokenizer = TOKENIZER
        clip = ClipScorer.from_pretrained(clip, tokenizer)
    cosines = clip.images(frames) @ clip.texts([prompt])[0]
    return (clip.model.logit_scale.exp().item() * cosines).mean().item()


def pickscore_miniature(frames: Float[Tensor, "..."], prompt: str) -> float:
    """The same formula with the miniature's CLIP, which knows no one's preference; runs anywhere.

    A second CLIP-T on the scale of its logits: no number of it compares with one of `pickscore`.
    """
    return pickscore(frames, prompt, miniature_path("clip"))
