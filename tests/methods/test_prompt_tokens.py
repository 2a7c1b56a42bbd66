"""Prompt tokens: what is pooled, what is learnt, that every frame has its own, what is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vala_research import InputError
from vala_research.methods.prompt_tokens import PromptTokens, PromptTokenSettings, pooled_tokens


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def module() -> PromptTokens:
    return PromptTokens(4, 12, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_pairs_are_averaged_and_an_odd_token_stays_alone(n):
    x = random(2, n, 3)
    found = pooled_tokens(x)
    slow = [x[:, i : i + 2].mean(1) for i in range(0, n, 2)]
    assert torch.allclose(found, torch.stack(slow, 1))
    assert found.shape[1] == (n + 1) // 2
    if n % 2:
        assert torch.equal(found[:, -1], x[:, -1])


def test_the_released_code_keeps_the_class_token_and_every_second_patch():
    x = torch.arange(50.0)[None, :, None]
    assert pooled_tokens(x, "released").flatten().tolist() == [0, *range(1, 50, 2)]
    assert pooled_tokens(x).flatten().tolist() == [2 * i + 0.5 for i in range(25)]
    assert pooled_tokens(x[:, :1], "released").shape[1] == 1


@pytest.mark.parametrize("pooling, n_frame", [("pairs", 25), ("released", 26), ("none", 50)])
@pytest.mark.parametrize("n_shared", range(19))
def test_lengths_for_vit_b_32(n_shared, pooling, n_frame):
    module = PromptTokens(n_shared, 768, 768, pooling)
    found = module(random(2, 50, 768), random(2, 77, 768))
    assert found.shape == (2, n_shared + n_frame + 77, 768)


@pytest.mark.parametrize(
    "n_shared, d_vision, d_text", [(18, 768, 768), (8, 1280, 2048), (0, 768, 1280), (6, 128, 128)]
)
def test_any_width_and_as_many_parameters_as_arithmetic_says(n_shared, d_vision, d_text):
    module = PromptTokens(n_shared, d_vision, d_text)
    found = module(random(3, 17, d_vision), random(3, 24, d_text))
    assert found.shape == (3, n_shared + 9 + 24, d_text)
    with torch.device("meta"):
        counted = PromptTokens(n_shared, d_vision, d_text)
    assert {p.device.type for p in counted.parameters()} == {"meta"}
    for which in (module, counted):
        n_parameters = sum(p.numel() for p in which.parameters())
        assert n_parameters == n_shared * d_text + d_vision * d_text + d_text


def test_the_released_tokens_have_593664_parameters():
    """Four shared tokens of 768 and one Linear(768, 768)."""
    assert sum(p.numel() for p in PromptTokens(4, 768, 768).parameters()) == 593_664


def test_the_order_is_shared_frame_text(module):
    vision, text = random(3, 6, 12), random(3, 5, 8, seed=1)
    found = module(vision, text)
    assert torch.equal(found[:, :4], module.shared.expand(3, -1, -1))
    assert torch.equal(found[:, 7:], text)
    by_hand = (vision[:, 0::2] + vision[:, 1::2]) / 2 @ module.projection.weight.T
    assert torch.allclose(found[:, 4:7], by_hand + module.projection.bias, atol=1e-6)
    assert torch.equal(found[:, :7], module.prefix(vision))


def test_every_frame_has_its_own_tokens_and_keeps_them(module):
    """One frame's picture changes its own sequence only; a frame is not told by its neighbours."""
    vision, text = random(3, 6, 12), random(1, 5, 8).expand(3, -1, -1)
    found = module(vision, text)
    assert all((found[i, 4:7] - found[j, 4:7]).abs().max() > 0.1 for i, j in [(0, 1), (1, 2)])
    assert torch.equal(found[0, :4], found[1, :4]) and torch.equal(found[0, 7:], found[1, 7:])
    vision[1] += 1
    moved = (module(vision, text) != found).flatten(1).any(1)
    assert moved.tolist() == [False, True, False]
    of_the_first = module(vision[:1].expand_as(vision), text)  # as released
    assert torch.equal(of_the_first[0], of_the_first[2])


@pytest.mark.parametrize("pooling", ["pairs", "released"])
def test_gradients_reach_shared_tokens_and_projection(pooling):
    module = PromptTokens(3, 6, 5, pooling).double()
    vision, text = random(2, 7, 6).double().requires_grad_(), random(2, 4, 5).double()
    module(vision, text).square().sum().backward()
    for parameter in module.parameters():
        assert (parameter.grad != 0).all()
    is_kept = vision.grad.any(-1).all(0)
    kept = [True] * 7 if pooling == "pairs" else [True, True, False, True, False, True, False]
    assert is_kept.tolist() == kept
    assert torch.autograd.gradcheck(lambda v: module(v, text), vision)


def test_the_start_is_drawn_from_the_generator_alone():
    def drawn(seed):
        return PromptTokens(18, 768, 768, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    a, b, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a.shared, b.shared) and torch.equal(a.projection.weight, b.projection.weight)
    assert not torch.equal(a.shared, other.shared)
    # 13,824 draws: the deviation is known to 0.6%, the mean to 0.00017.
    assert a.shared.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(a.shared.mean().item()) < 0.001
    assert not a.projection.bias.any()
    image = random(1, 50, 768)  # Xavier: with equal widths the size of a token stays
    assert a.projection(image).std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("n_shared", [0, 4])
def test_a_state_comes_back_from_safetensors(tmp_path, n_shared):
    module, other = PromptTokens(n_shared, 12, 8), PromptTokens(n_shared, 12, 8)
    vision, text = random(2, 6, 12), random(2, 5, 8)
    assert not torch.equal(module(vision, text), other(vision, text))
    save_file(module.state_dict(), tmp_path / "tokens.safetensors")
    saved = load_file(tmp_path / "tokens.safetensors")
    assert sorted(saved) == ["projection.bias", "projection.weight", "shared"]
    other.load_state_dict(saved)
    assert torch.equal(module(vision, text), other(vision, text))


def test_half_precision_text_gives_half_precision_tokens(module):
    """Weights in training are float32 while frozen encoders speak bfloat16."""
    vision, text = random(2, 6, 12).bfloat16(), random(2, 5, 8).bfloat16()
    found = module(vision, text)
    assert found.dtype == torch.bfloat16
    exact = module(vision.float(), text.float())
    assert torch.allclose(found.float(), exact, rtol=2**-8)  # one rounding, at the end
    with torch.autocast("cpu", torch.bfloat16):
        assert module(vision, text.float()).dtype == torch.float32


def test_defaults_are_those_of_the_paper():
    assert PromptTokenSettings() == PromptTokenSettings(n_shared=18, pooling="pairs")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m(random(2, 6, 11), random(2, 5, 8)), "Image tokens are 11 wide, .* 12"),
        (lambda m: m(random(2, 6, 12), random(2, 5, 768)), "Text tokens are 768 wide, .* 8"),
        (lambda m: m(random(3, 6, 12), random(1, 5, 8)), "3 frames .* 1 rows of text"),
        (lambda m: m(random(2, 0, 12), random(2, 5, 8)), "no image tokens"),
        (lambda m: m(random(2, 6, 12), random(2, 5, 8) / 0), "text tokens of frame 0 hold NaN"),
        (lambda m: PromptTokens(-1, 12, 8), "n_shared is -1"),
        (lambda m: PromptTokens(4, 0, 8), "Widths of 0 and 8"),
        (lambda m: pooled_tokens(random(2, 6, 12), "half"), "'half': choose one of pairs"),
        (lambda m: PromptTokens(4, 12, 8, "mean"), "'mean': choose one of pairs, released"),
    ],
)
def test_bad_input_is_named(module, call, words):
    with pytest.raises(InputError, match=words):
        call(module)


def test_nan_is_named_with_its_frame(module):
    vision = random(3, 6, 12)
    vision[1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="image tokens of frame 1 hold NaN"):
        module(vision, random(3, 5, 8))
