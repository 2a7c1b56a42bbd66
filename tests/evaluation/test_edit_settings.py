"""Settings of edits that act in some of the steps, and their network calls; tiny, 3 s."""

import pytest
import torch

from vala_research import InputError
from vala_research.editing.plan import Plan
from vala_research.evaluation.edit_settings import ALWAYS, EditSetting, is_guided

WORDS = ("a blue square", "a red circle")


def edit(pipe, video, setting: EditSetting) -> tuple[torch.Tensor, int]:
    """The edit, and the network calls per frame of its sampling."""
    seen = []
    known = pipe.invert(video, WORDS[1], 4, "ddim", "own", return_inversion=True)
    hook = pipe.unet.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    frames = pipe(None, *WORDS, output_type="pt", **setting.arguments() | {"latents": known})
    hook.remove()
    return frames.frames[0], sum(seen) // len(video)


def guided(*interval: float, scale: float = 6.0) -> EditSetting:
    return EditSetting(
        "own", guidance_scale=scale, num_inference_steps=4, guidance_interval=interval
    )


@pytest.mark.parametrize("interval", [ALWAYS, (0.0, 0.5), (0.5, 1.0), (0.25, 0.75), (0.0, 0.0)])
def test_as_many_calls_as_steps_and_guided_steps(tiny, video, interval):
    setting = guided(*interval)
    steps = [i for i in range(4) if is_guided(interval, i, 4)]
    assert edit(tiny, video, setting)[1] == setting.n_sampling == 4 + len(steps)
    assert guided(*interval, scale=1.0).n_sampling == 4


def test_guidance_acts_in_its_steps_alone(tiny, video):
    never, _ = edit(tiny, video, guided(0.0, 0.0))
    plain, _ = edit(tiny, video, guided(*ALWAYS, scale=1.0))
    assert torch.equal(never, plain)
    edits = [edit(tiny, video, guided(*x))[0] for x in ((0.0, 0.5), (0.5, 1.0), ALWAYS)]
    for i, one in enumerate([never, *edits]):
        assert all((one - other).abs().max() > 1e-4 for other in edits[i:])


@pytest.mark.parametrize("other", [{"fusion": Plan()}, {"inversion": "flow_edit"}])
def test_other_edits_are_guided_in_all_steps(other):
    assert EditSetting(**other).n_sampling > 0
    with pytest.raises(InputError, match="guidance_interval: fused edits"):
        EditSetting(**other, guidance_interval=(0.0, 0.5))
