"""What an adapter adds: counts that arithmetic gives, beside the paper's."""

import pytest
import torch
from tiny_models import D_TEXT, N_TOKENS, tiny_unet

from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.experiments.ge.adapter_costs import (
    PAPER,
    flop_table,
    n_text,
    parameter_table,
    timed,
)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    return {(row["backbone"], row["blocks"]): row for row in parameter_table()}


def test_parameters_on_stable_diffusion_and_sdxl_beside_the_papers(rows):
    sd, xl = "Stable Diffusion 1.5", "SDXL"
    lora = {key: round(row["LoRA"] * 1e6) for key, row in rows.items()}
    assert lora == {
        (sd, "all"): 797_184, (sd, "down_up"): 719_360, (sd, "down"): 287_744,
        (xl, "all"): 5_806_080, (xl, "down_up"): 4_925_440, (xl, "down"): 1_970_176,
    }  # fmt: skip
    # 18 shared tokens and a linear map with bias from 768 numbers, at the width of the text.
    assert rows[sd, "all"]["tokens"] * 1e6 == pytest.approx((18 + 769) * 768)
    assert rows[xl, "all"]["tokens"] * 1e6 == pytest.approx((18 + 769) * 2048)
    assert rows[sd, "all"]["UNet"] == pytest.approx(859.52, abs=0.01)
    assert rows[xl, "all"]["UNet"] == pytest.approx(2567.46, abs=0.01)
    # 0.755 M lies between two choices of blocks and is none of them.
    (_, paper), *_ = PAPER
    assert rows[sd, "down_up"]["LoRA"] < paper < rows[sd, "all"]["LoRA"]
    for row in rows.values():  # pytest -s shows them
        print(*(f"{k} {v}" if isinstance(v, str) else f"{k} {v:.3f}" for k, v in row.items()))
    print("the paper:", *(f"{name} {n} M" for name, n in PAPER), sep="\n  ")


def test_flops_of_the_lora_are_those_of_its_two_products(rows):
    settings = AdapterSettings()
    found = flop_table(settings, n_frames=1, side=64)
    # By hand: 2 r (d_in + d_out) a token for each of q, k, v and out, of both attentions.
    levels = [(320, 64**2, 5), (640, 32**2, 5), (1280, 16**2, 5), (1280, 8**2, 1)]
    by_hand = 0
    for width, n, count in levels:
        by_self = 4 * 2 * width * n
        by_cross = 2 * 2 * width * n + 2 * (768 + width) * 77
        by_hand += 2 * settings.rank * count * (by_self + by_cross)
    assert found["LoRA"] - found["bare"] == by_hand
    assert found["bare"] < found["LoRA"] < found["LoRA and tokens"] < 1.01 * found["bare"]
    assert n_text(settings) == 77 + 18 + 25


def test_milliseconds_are_of_one_forward_each():
    unet = tiny_unet()
    adapter = TemporalAdapter.attach(unet, AdapterSettings(), 6)
    generator = torch.Generator().manual_seed(0)
    z, text, vision = (
        torch.randn(shape, generator=generator)
        for shape in [(1, 3, 4, 8, 8), (1, N_TOKENS, D_TEXT), (3, 5, 6)]
    )
    found = timed(adapter, z, text, vision, n_repeats=2)
    assert list(found) == ["bare", "LoRA", "LoRA and tokens"]
    assert all(0 < x < 60_000 for x in found.values())
    assert found["LoRA"] > 0.5 * found["bare"]
