"""|Delta Z| of prompt tokens before and after fine-tuning; the claims follow planted rows. 5 s."""

import math

import pandas as pd
import pytest
import torch

from vala_research.adapter.vision import VisionEncoder
from vala_research.evaluation.cases import sprite_cases
from vala_research.evaluation.verdicts import CONFIRMED, CONTRADICTED, OPEN, assert_claims
from vala_research.experiments.ge import alignment_error, attention_maps
from vala_research.methods.prompt_tokens import PromptTokens, pooled_tokens
from vala_research.sprites.scene import WORLD


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_least_error_is_that_of_the_best_tokens():
    """Ideal tokens that some T_share and W make have no error; otherwise no fit comes nearer."""
    tokens = PromptTokens(3, 4, 6, generator=torch.Generator().manual_seed(1))
    vision, text = noise(2, 16, 4), noise(2, 5, 6, seed=1)
    with torch.no_grad():
        reachable = tokens(vision, text)
    image = pooled_tokens(vision)
    assert alignment_error.least_error(image, text, reachable) < 1e-4

    # The text cannot move; tokens that frames share lie at the mean of their ideals.
    moved = reachable.clone()
    moved[:, -1] += 2.0
    moved[0, 0] += 2.0
    expected = math.sqrt(2 * 6 * 4 + 2 * 6 * 1)
    assert alignment_error.least_error(image, text, moved) == pytest.approx(expected, rel=1e-5)

    # Descent on T_share and W ends at the least error, and not below it.
    ideal = noise(2, 3 + 8 + 5, 6, seed=2)
    least = alignment_error.least_error(image, text, ideal)
    parameters = list(tokens.parameters())
    reached = alignment_error.fitted(
        parameters, lambda: (tokens(vision, text) - ideal).square().sum(), 300, 0.1
    )
    assert least <= math.sqrt(reached) * (1 + 1e-6)
    assert math.sqrt(reached) == pytest.approx(least, rel=0.01)


def test_rows_of_a_clip(pipe, miniature):
    """Both fits lower the loss; the errors are distances from the ideal tokens; the LoRA is off."""
    [case], encoder = sprite_cases(1, WORLD, 2), VisionEncoder.from_pretrained("miniature")
    rows = pd.DataFrame(alignment_error.error_rows(pipe, encoder, [case], 541, 2))
    by_state = rows.set_index("state")
    assert list(by_state.index) == ["before", "after", "ideal", "least"]
    assert by_state.loss["after"] < by_state.loss["before"]
    assert by_state.loss["ideal"] < by_state.loss["before"] and by_state.error["ideal"] == 0
    assert 0 < by_state.error["least"] <= by_state.error[["before", "after"]].min()
    assert set(rows["t"]) == {541} and set(rows["clip"]) == {0}


def planted(error=(10.0, 8.0), loss=(0.02, 0.01), n: int = 8) -> pd.DataFrame:
    return pd.DataFrame([
        {"part": "tokens", "clip": clip, "t": 541, "state": state,
         "error": e * (1 + clip / 100), "loss": m * (1 + clip / 100)}
        for clip in range(n)
        for state, e, m in (("before", error[0], loss[0]), ("after", error[1], loss[1]),
                            ("ideal", 0.0, 0.001), ("least", 5.0, math.nan))
    ])  # fmt: skip


def test_the_caption_of_fig_3_is_judged_by_the_rows():
    def verdicts(**wrong) -> list[str]:
        return [claim.verdict for claim in alignment_error.claims(planted(**wrong))]

    assert verdicts() == [CONFIRMED, CONFIRMED]
    assert verdicts(error=(8.0, 10.0)) == [CONFIRMED, CONTRADICTED]
    assert verdicts(loss=(0.01, 0.02))[0] == CONTRADICTED
    assert verdicts(n=2) == [OPEN, OPEN]
    assert_claims(alignment_error.claims(planted(error=(8.0, 10.0))))  # printed, not raised


def test_the_figure_draws_every_clip_from_before_to_after():
    [axes] = attention_maps.token_figure(planted(n=3)).axes
    *clips, least = axes.lines
    assert [line.get_ydata().tolist() for line in clips][0] == [10.0, 8.0] and len(clips) == 3
    assert list(least.get_ydata()) == pytest.approx([5.05, 5.05])  # the mean over clips
    assert alignment_error.table(planted()).index.tolist() == ["before", "after", "ideal", "least"]


def test_no_clips_no_rows_and_no_claims():
    settings = attention_maps.Settings(token_clips=0)
    assert attention_maps.token_rows(None, settings, 64) == []
