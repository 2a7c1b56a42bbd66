"""The settings of the search for the default edit: each differs from the start in one thing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vala_research.diffusion.injection import Injection
from vala_research.editing.plan import Plan
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.experiments.fldm.settings import FRAMEWISE, constant

GUIDANCES = (1.0, 1.5, 3.0, 5.0, 7.5)
# Steps of an adapter that learns the clip before the edit, in place of the model's own.
TUNED = {f"tuned on the clip, {n} steps": n for n in (50, 200)}


def settings_beside(start: EditSetting, steps: Iterable[int]) -> dict[str, EditSetting]:
    """By name; at last several things at once. The adapters of `TUNED` are trained for each clip.

    steps: numbers of steps to try.
    """
    tuned = {name: replace(start, adapter=name) for name in TUNED}  # until it is trained
    parts, place, together = _parts(start), _place(start), _together(start)
    return parts | _steps(start, steps) | _guidance(start) | place | tuned | together


def _parts(start: EditSetting) -> dict[str, EditSetting]:
    """Fewer parts, another base, and ControlNets of another strength."""
    free = replace(start, controlnet="", control_scale=1.0)
    settings = {"no parts": replace(free, motion="", adapter="")}
    if start.controlnet:
        settings["ControlNet alone"] = replace(start, motion="", adapter="")
        settings["no ControlNet"] = free
        settings["no motion modules"] = replace(start, motion="")
        settings["no adapter"] = replace(start, adapter="")
        for scale in (1.0, 2.0):
            settings[f"ControlNet x {scale:g}"] = replace(start, control_scale=scale)
        for first, last in ((0.0, 0.5), (0.5, 1.0)):
            name = f"ControlNet from {first:g} to {last:g} T"
            settings[name] = replace(start, control_interval=(first, last))
        if start.motion:
            settings["fusion, .7 video"] = _fused(start)
    for first, last in ((0.0, 0.5), (0.5, 1.0)) if start.adapter else ():
        name = f"adapter from {first:g} to {last:g} T"
        settings[name] = replace(start, adapter_interval=(first, last))
    return settings


def _steps(start: EditSetting, steps: Iterable[int]) -> dict[str, EditSetting]:
    """More and fewer steps, and fewer of them walked."""
    more = {f"steps {n}": replace(start, num_inference_steps=n) for n in steps}
    return more | {f"strength {s:g}": replace(start, strength=s) for s in (0.6, 0.8)}


def _guidance(start: EditSetting) -> dict[str, EditSetting]:
    settings = {f"guidance {g:g}": replace(start, guidance_scale=g) for g in GUIDANCES}
    for first, last in ((0.0, 0.5), (0.5, 1.0)):
        name = f"guided in steps {first:g} to {last:g}"
        settings[name] = replace(start, guidance_interval=(first, last))
    return settings | {"source prompt as negative prompt": replace(start, negates_source=True)}


def _place(start: EditSetting) -> dict[str, EditSetting]:
    """What holds an edit to the clip's layout, or its frames to each other."""
    return {
        "exact inversion": replace(start, inversion="exact"),
        "features injected, .3": replace(start, injection=0.3),
        "self-attention injected, .6": replace(start, injection=Injection(0.6, 0)),
        "one residual injected, .6": replace(start, injection=Injection(0, 0.6)),
        "prompt-to-prompt, .3": replace(start, injection=Injection(0, 0, words=0.3)),
        "prompt-to-prompt, .6": replace(start, injection=Injection(0, 0, words=0.6)),
    } | {
        f"attention {name}": replace(start, attention=name)
        for name in ("sparse_causal", "extended", "anchors")
    }


def _together(start: EditSetting) -> dict[str, EditSetting]:
    """Less guidance with a weaker ControlNet, fewer steps and fusion."""
    less = replace(start, guidance_scale=1.5)
    if not start.controlnet:
        return {"guidance 1.5, steps 10": replace(less, num_inference_steps=10)}
    few = replace(less, num_inference_steps=10, control_scale=1.25)
    settings = {
        "guidance 1.5, ControlNet x 1.25": replace(less, control_scale=1.25),
        "guidance 1.5, ControlNet x 1": replace(less, control_scale=1.0),
        "guidance 1.5, steps 10": replace(less, num_inference_steps=10),
        "guidance 1.5, ControlNet x 1.25, steps 10": few,
        "guidance 1.25, ControlNet x 1.25, steps 10": replace(few, guidance_scale=1.25),
        "guidance 1.5, ControlNet x 1.25, steps 8": replace(few, num_inference_steps=8),
    }
    if start.motion:
        settings["guidance 1.5, ControlNet x 1.25, steps 10, fusion"] = _fused(few)
    return settings


def _fused(setting: EditSetting) -> EditSetting:
    """The motion UNet and the image UNet at once, at .7 and .3."""
    plan = Plan(attentions=FRAMEWISE, schedule=constant(0.7), motion=setting.motion)
    return replace(setting, motion="", fusion=plan)
