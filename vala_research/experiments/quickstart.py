"""One call edits a clip; on the demo clip the true edit is known (notebook 00)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.assets import demo_clip
from vala_research.diffusion.inversion import METHODS
from vala_research.editing.hosts import HOSTS
from vala_research.editing.memory_plan import MemoryPlan
from vala_research.evaluation.figures import Picture
from vala_research.evaluation.metrics import estimate_flow, psnr, ssim, warp_error
from vala_research.evaluation.sheet import strip
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import ATTENTIONS, STABLE_DIFFUSION, Preset
from vala_research.experiments.edit_panel import EditPanel
from vala_research.sprites.edits import demo_scenes
from vala_research.sprites.render import render

SCENE, TARGET = demo_scenes()
FIRST_FRAMES, FIRST_STEPS = 4, 5  # of the first look
Frames = Float[Tensor, "f c h w"]


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 00."""

    PRESETS = {"smoke": {}, "paper": {"model": STABLE_DIFFUSION}}
    CHOICES = {"attention": ATTENTIONS, "inversion": METHODS, "host": HOSTS}

    model: str = "miniature"  # or a folder or a hub id
    clip: str = demo_clip()  # a video, gif or folder of frames
    source_prompt: str = SCENE.caption  # what the clip shows
    prompt: str = TARGET.caption  # what it shall show
    n_frames: int = 16  # frames at most
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    # None, from here on: the model's own value, `pipe.edit_defaults`.
    attention: str | None = None  # "own", "first", "sparse_causal", "extended" or "anchors"
    host: str | None = None  # another paper's editor, such as "token_flow"
    inversion: str | None = None  # "ddim", "exact", "bilateral" or "null_text"
    injection: float | None = None  # first share of the steps that use the source's features
    steps: int | None = None  # diffusion steps each way
    guidance: float | None = None  # how strongly the prompt acts
    seed: int = 0

    def side(self, pipe) -> int:
        """Side of the frames in pixels: as given, or the model's own."""
        return self.size or pipe.unet.config.sample_size * pipe.vae_scale_factor

    def truth(self, source: Frames) -> Frames | None:
        """Render the true edit; it is known for the demo clip under its own two captions only."""
        asked = self.clip, self.source_prompt, self.prompt
        if asked != (demo_clip(), SCENE.caption, TARGET.caption):
            return None
        return render(TARGET, 16, source.shape[-1]).frames[: len(source)]


def fitted(pipe, settings: Settings, source: Frames) -> MemoryPlan:
    """Make the edit fit into the memory of the device; the forecast, as one sentence, is printed.

    Raises InputError if it does not fit.
    """
    s = settings
    return pipe.fit_memory(
        len(source), *source.shape[-2:], num_inference_steps=s.steps, guidance_scale=s.guidance,
        attention=s.attention, host=s.host, inversion=s.inversion, injection=s.injection,
    )  # fmt: skip


def first_look(pipe, settings: Settings, source: Frames) -> Picture:
    """Edit a few frames in a few steps: a picture within seconds, before the edit itself."""
    frames = source[:FIRST_FRAMES]
    edited = pipe(
        frames, settings.prompt, settings.source_prompt, num_inference_steps=FIRST_STEPS,
        guidance_scale=settings.guidance, output_type="pt",
        generator=torch.Generator().manual_seed(settings.seed),
    ).frames[0].float().cpu()  # fmt: skip
    title = f"a first look: {len(frames)} frames, {FIRST_STEPS} steps"
    return strip({"source": frames, "edit": edited}, title=title)


def panel(pipe, settings: Settings, output: str | Path) -> EditPanel:
    """The panel "your clip": choose a clip, prompts and an editor by hand."""
    return EditPanel(pipe, settings, output)


def figure(settings: Settings, source: Frames, edited: Frames, truth: Frames | None) -> Picture:
    """Source, edit, true edit where it is known, and what the edit differs by."""
    known = {} if truth is None else {"true edit": truth}
    difference = (edited - (source if truth is None else truth)).abs()
    rows = {"source": source, "edit": edited} | known | {"difference": difference}
    return strip(rows, title=f"{settings.source_prompt}  ->  {settings.prompt}")


def table(source: Frames, edited: Frames, truth: Frames | None) -> pd.DataFrame:
    """PSNR (dB) and SSIM of source and edit to each reference; E_warp under the source's flow.

    One frame has no flow and no E_warp (NaN).
    """
    flow = estimate_flow(source) if len(source) > 1 else None

    def steadiness(frames: Frames) -> float:
        return 1000 * warp_error(frames, *flow) if flow else float("nan")

    references = {"source": source} | ({} if truth is None else {"true edit": truth})
    return pd.DataFrame(
        {"frames": name, "reference": reference, "PSNR": psnr(f, r), "SSIM": ssim(f, r),
         "E_warp x 1000": steadiness(f)}
        for name, f in (("source", source), ("edit", edited))
        for reference, r in references.items() if name != reference
    ).round(3)  # fmt: skip


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The edit is nearer to the true edit than the source; without a true edit, it is an edit."""
    to = rows.set_index(["frames", "reference"]).PSNR.to_dict()
    if ("source", "true edit") not in to:
        kept = to["edit", "source"]
        fact = "The edit changes the clip", "PSNR to the source, dB", kept, kept < 50
    else:
        gain = to["edit", "true edit"] - to["source", "true edit"]
        sentence = "The edit is nearer to the true edit than the source is"
        fact = sentence, "gain in PSNR, dB", gain, gain > 0
    return [Claim.of_fact(*fact)]
