"""Tables for papers: what LaTeX reads as its own is escaped, numbers are short; no model."""

from vala_research.evaluation.latex import escaped, latex_table


def test_a_table_is_a_tabular_of_booktabs():
    rows = [{"what": "50% & more_x", "n": 3, "value": 0.123456}, {"what": "b", "n": 4}]
    assert latex_table(["what", "n", "value"], rows).splitlines() == [
        r"\begin{tabular}{lrr}", r"\toprule", r"what & n & value \\", r"\midrule",
        r"50\% \& more\_x & 3 & 0.1235 \\", r"b & 4 &  \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_a_comparison_becomes_a_row_per_setting_with_named_metrics():
    rows = [
        {"setting": s, "metric": m, "mean": value, "low": 0.0}
        for s, values in {"own": (20.0, 0.004), "ours": (21.5, 0.002)}.items()
        for m, value in zip(("psnr", "warp_error"), values, strict=True)
    ]
    lines = latex_table(list(rows[0]), rows).splitlines()
    assert lines[2] == r"setting & PSNR to the true edit, dB & E\_warp x 1000 \\"
    assert lines[4:6] == [r"own & 20 & 4 \\", r"ours & 21.5 & 2 \\"]


def test_odd_numbers_and_special_characters():
    values = [float("nan"), None, True, 1e-7, 0.0, float("inf"), 123456.7]
    cells = latex_table(["x"], [{"x": value} for value in values]).splitlines()[4:-2]
    assert [c.removesuffix(r" \\") for c in cells] == [
        "", "", "True", r"$1.00\times 10^{-7}$", "0", "inf", r"$1.23\times 10^{5}$",
    ]  # fmt: skip
    assert escaped("a{b}~^\\") == r"a\{b\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
