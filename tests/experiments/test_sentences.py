"""Sentences of the pages say what the committed rows say; no model, about 1 s."""

import json
from pathlib import Path

from vala_research.evaluation.statistics import paired_gain
from vala_research.experiments.contract import part_of
from vala_research.experiments.fldm import cost
from vala_research.experiments.page_cells import number, p_text, rows_of
from vala_research.experiments.theory import attention

ROOT = Path(__file__).resolve().parents[2]
PAGE = " ".join((ROOT / "notebooks" / "README.md").read_text("utf-8").split())
PROOFS = " ".join((ROOT / "theory" / "README.md").read_text("utf-8").split())


def plain(value: float, digits: int) -> str:
    """A number without the zero before its point."""
    return number(value, digits).replace("0.", ".", 1)


def test_as_many_anchors_as_shots():
    counts = rows_of("10_vala_anchors").query("panel == 'shots'")
    share = (counts.found == counts.scenes).mean()
    assert f"as many anchors as shots on {share:.0%} of {len(counts)} test clips" in PAGE


def test_inversions_with_anchors():
    rows = rows_of("11_vala_inversion_fidelity_anchors").query("attention == 'anchors, site'")
    mean = rows.groupby("method").to_vae.mean()
    assert f"DDIM {mean['ddim']:.1f} dB, the quick setting" in PAGE
    assert f"of exact inversion {mean['exact, quick']:.1f} dB" in PAGE


def test_the_cost_of_a_fused_edit():
    counted = cost.ratios(part_of(rows_of("26_fldm_cost"), "counted"))
    flops = [x for (_, key), x in counted.items() if key == "tflop"]
    peak = max(x for (_, key), x in counted.items() if key == "peak")
    assert f"{plain(min(flops), 3)} to {plain(max(flops), 3)} of the sum of their FLOPs" in PAGE
    assert f"peak memory at most {peak:.3f} of the largest source" in PAGE


def test_what_fine_tuning_does_to_the_alignment_error():
    tokens = part_of(rows_of("34_ge_attention_maps"), "tokens")
    error, loss = (tokens.pivot(index="clip", columns="state", values=x) for x in ("error", "loss"))
    gain = paired_gain(error.after.to_numpy(), error.before.to_numpy())
    means = error.mean()
    assert (
        f"It *rises*, from {means.before:.1f} to {means.after:.1f}, by {gain.mean:.1f} "
        f"[{gain.low:.1f}, {gain.high:.1f}] ({gain.n} clips, 60 steps, {p_text(gain.p_value)}), "
        f"while the loss falls from {plain(loss.before.mean(), 4)} to {plain(loss.after.mean(), 4)}"
    ) in PAGE


def test_the_attention_of_a_network_s_layers():
    """The largest ratio of the paper's bound where queries agree, and the norms of P."""
    layers = part_of(rows_of("44_theory_attention"), "layers")
    words = layers[layers.pair == "words"]
    largest = attention.layer_ratios(words)["paper"].max()
    medians = layers.groupby("layer").norm.median()
    assert f"not broken on these layers (largest ratio {plain(largest, 3)};" in PROOFS
    assert f"median of {medians.min():.1f} to {medians.max():.1f} per layer" in PROOFS
    assert f"a maximum of {layers.norm.max():.2f}, not 1" in PROOFS


EDITS = {"colour": "colour", "background": "background colour", "pattern": "pattern",
         "shape": "shape", "several": "shape, colour and background"}  # fmt: skip


def test_what_the_miniature_s_card_says():
    """The page repeats numbers of the card, whose rows are quality.json."""
    folder = ROOT / "vala_research" / "assets" / "miniature"
    quality = json.loads((folder / "quality.json").read_text("utf-8"))
    assert f"| VAE round trip | {quality['vae']['sprites_psnr']:.1f} dB |" in PAGE
    for key in ("prompts", "prompts_of_held_out_pairs"):
        found = quality[key]
        parts = (f"{found[x]:.2f}" for x in ("colour", "background", "pattern", "shape", "all"))
        assert f"(n = {found['n']}) | {' / '.join(parts)} |" in PAGE
    ddim = (f"{quality['reconstruction'][f'ddim {n}']['to_vae']:.1f}" for n in (10, 25, 50))
    assert f"10 / 25 / 50 steps | {' / '.join(ddim)} dB |" in PAGE
    shown = [row for row in quality["edits"] if row["setting"] == "extended"]
    assert {row["kind"] for row in shown} == set(EDITS)
    for x in shown:
        assert (
            f"| {EDITS[x['kind']]} | {x['psnr']:.1f} | {x['source_psnr']:.1f} | {x['gain']:+.1f} "
            f"[{x['gain_low']:+.1f}, {x['gain_high']:+.1f}] | {x['edited']:.2f} | "
            f"{x['success']:.2f} |"
        ) in PAGE
