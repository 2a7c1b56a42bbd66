"""Every constant of every bound of the theory is seen by its own file's checks, if it is wrong.

The source is read: each number (times 0.95), each exponent (times 0.95) and each term, factor and
divisor (left out) of each function that states a bound makes one wrong copy. The copy runs in place
of the function, and the known points of the same group, which are part of the checks, must fail.
Nothing is listed by hand but what is left out, each with its reason. 15 s of processor time.
"""

import ast
import importlib
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mutants import Mutant, compiled, functions_of, mutants_of, running, swapped

import theory.__main__  # noqa: F401 - every file registers its known points
from theory.verdict import KNOWN_POINTS, STATEMENTS, Verdict, known_points, statement

# What a file's bounds are held against: the file of known points of its group.
GROUPS = {
    "points_loss": ("temporal_loss", "temporal_curvature", "certificates"),
    "points_descent": ("gradient_descent", "descent_rate", "strict_saddles", "steady_flicker"),
    "points_filter": ("bilateral_window", "bilateral_certificate", "bilateral_filter", "methods"),
    "points_deviation": ("deviation_bound", "deviation_filter"),
    "points_paths": ("error_factors", "ddim_stability", "filtered_steps", "ddim_inversion"),
    "points_flow": ("flow_factors", "flow_steps"),
    "points_attention": (
        "attention", "softmax_norms", "shared_tokens", "attention_alignment", "attention_search",
    ),
}  # fmt: skip
OTHER_FILES = {
    "__init__": "only says what the folder is",
    "__main__": "prints verdicts",
    "attack": "searches; it knows no bound",
    "verdict": "compares what is measured with bounds; its own test mutates verdicts",
    "report": "prints verdicts",
    "note": "writes the tables of the note from the json",
    "measurements": "rows for notebooks, from the checks",
}

DRAWS = "draws or makes points, which are the same for a wrong bound"
MEASURES = "measures; a check compares the result with a bound from elsewhere"
EXAMPLE = "one point with its numbers: a counterexample or a witness"
PAPER = "the paper's own bound, which is false"
SEARCHES = "a search or an iteration; a wrong result is not accepted"
CERTIFIES = "a certificate: its margins do not change the constant, which is attained at c = 1"
FILTER = "the filter itself; the theory's matrices are held against it"
LEFT_OUT = {
    "temporal_loss": {"gradient_points": DRAWS, "_self_bounded": MEASURES},
    "temporal_curvature": {
        "sign_pattern": DRAWS, "curvature_of": MEASURES, "curvature_attack": SEARCHES,
        "_agrees": MEASURES, "_near_zero": EXAMPLE, "chord_on_the_sphere": EXAMPLE,
    },
    "gradient_descent": {
        "_bounded": MEASURES, "_threshold": EXAMPLE, "total_loss_step": EXAMPLE,
        "_chords": MEASURES,
    },
    "descent_rate": {"promised_losses": MEASURES, "_keeps_rate": MEASURES},
    "strict_saddles": {
        "critical_similarities": SEARCHES, "frames_with": DRAWS, "_normal": DRAWS,
        "descent_ends": MEASURES, "along_theta": EXAMPLE, "parameter_minimum": EXAMPLE,
    },
    "steady_flicker": {
        "flicker": DRAWS, "uneven": DRAWS, "gradient_attack": SEARCHES, "saddle_check": MEASURES,
        "descend_repaired": MEASURES, "_is_saddle": MEASURES, "_agrees": MEASURES,
    },
    "bilateral_window": {"spectral_norm": MEASURES},
    "bilateral_certificate": {
        "certify": SEARCHES, "_width": SEARCHES, "_halves": SEARCHES,
    },
    "bilateral_filter": {"_largest_shift": SEARCHES, "stretched_pair": EXAMPLE},
    "methods": {
        "bilateral_filter": FILTER, "_over_sites": FILTER, "bilateral_filter_frames": FILTER,
        "_over_frames": FILTER, "BilateralSettings": FILTER, "check_window": FILTER,
        "_check": FILTER, "check_reflection": FILTER,
    },
    "error_factors": {
        "check_levels": "refuses bad input", "sum_of_norms": PAPER, "random_levels": DRAWS,
        "schedules": DRAWS, "shares": DRAWS, "excess": SEARCHES, "log_product": MEASURES,
    },
    "filtered_steps": {
        "largest_step": SEARCHES, "one_filtered_step": EXAMPLE, "two_noisy_steps": EXAMPLE,
        "literal_reading": EXAMPLE, "first_moment_ratio": MEASURES, "default_filter_step": EXAMPLE,
    },
    "deviation_bound": {
        "_multipliers": SEARCHES, "best_constant": SEARCHES, "certify_mass": CERTIFIES,
    },
    "deviation_filter": {
        "window_attack": SEARCHES, "_neighbours": DRAWS, "planted_pair": EXAMPLE,
        "shift_norm": MEASURES,
    },
    "flow_factors": {
        "check_flow": "refuses bad input", "flows": DRAWS, "random_flows": DRAWS,
        "largest_excess": SEARCHES,
    },
    "flow_steps": {
        "schedule_of": DRAWS, "uniform": DRAWS, "iteration_errors": MEASURES,
        "round_trip": MEASURES, "led_away": MEASURES,
    },
    "ddim_inversion": {"worst_path": MEASURES, "fixed_point_errors": MEASURES},
    "attention": {
        "Comparison.bound_paper": PAPER, "ideal_output": SEARCHES, "judged": MEASURES,
    },
    "softmax_norms": {"starts": DRAWS, "attained": MEASURES, "rows_shrink": MEASURES},
    "shared_tokens": {"distances": MEASURES, "ranks_suffice": MEASURES, "permutes": MEASURES},
    "attention_alignment": {"finds_ideals": MEASURES, "other_queries": EXAMPLE},
    "attention_search": {
        "search": SEARCHES, "draw": DRAWS, "as_drawn": DRAWS, "is_resolved": MEASURES,
        "solving": DRAWS, "solves_it": MEASURES, "random_ratios": MEASURES,
        "Found.witness": MEASURES,
    },
}  # fmt: skip

# Expressions inside bounds whose numbers do not change the bound.
EXPRESSIONS = {
    "check_window(kernel_size, sigma_spatial, 1.0, border)": "any sigma that is valid",
    "torch.linspace(0, 8, grid, dtype=torch.float64)": "far beyond the maximum",
    "1e-06": "the margin for what lies between the points of the grid",
    "float((q / (1 + q) * most).max()) + 1e-06": "the same margin; its parts are mutated below",
    "(1 - after).masked_fill(after == 1, 1)": "there the numerator is 0",
    "n_nodes // 2 + 1": "more nodes than the mirrors need are the same nodes",
    "max(largest, torch.linalg.eigvalsh(block).abs().max().item())": "the last node attains it too",
    "(iv.prec, 80)": "the precision of the intervals",
    "iv.mpf(4)": "the other end of P, where h is larger",
    "min(least, mp.mpf(lemma_polynomial(big_p, u).a))": "the last interval has the least value",
    "(steps / smooth, g.square().sum((1, 2)))": "a step of any size shows the curvature",
    "0.5 * eta ** 2 * square * smooth + is_flat": "is_flat only avoids 0 / 0; see the product",
}


def module_of(name: str):
    path = "vala_research.methods.bilateral" if name == "methods" else f"theory.{name}"
    return importlib.import_module(path)


def bounds_of(name: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file that are mutated: all but checks and what is left out."""
    left_out = LEFT_OUT.get(name, {})
    return {
        key: node for key, node in functions_of(module_of(name)).items()
        if key not in left_out and key.split(".")[0] not in left_out and not is_check(node)
    }  # fmt: skip


def is_check(node: ast.FunctionDef) -> bool:
    """Whether a function judges a statement: it only compares, `test_checks_state_no_bound`."""
    return any("statement(" in ast.unparse(d) for d in node.decorator_list)


def points_of(group: str) -> list:
    """The known points of a file, each once, and for the loss those of descent, which use it."""
    groups = {f"theory.{group}"} | ({"theory.points_descent"} if group == "points_loss" else set())
    every = [check for checks in KNOWN_POINTS.values() for check in checks]
    return [check for check in dict.fromkeys(every) if check.__module__ in groups]


def callers(module, name: str, checks: list) -> list:
    """Those checks that call the function, the fastest first: no mutant is shown to others."""
    code, calling = running(module, name).__code__, []
    for check in checks:
        seen = []

        def watch(frame, event, _, seen=seen):
            if event == "call" and frame.f_code is code:
                seen.append(True)

        start = time.process_time()
        sys.setprofile(watch)
        try:
            check()
        finally:
            sys.setprofile(None)
        if seen:
            calling.append((time.process_time() - start, check))
    return [check for _, check in sorted(calling, key=lambda timed: timed[0])]


def fate(module, mutant: Mutant, checks: list) -> str:
    """Why the checks fail with this mutant: "value", the name of an exception, or "" if none."""
    with swapped(module, mutant):
        for check in checks:
            try:
                if not all(check().values()):
                    return "value"
            except Exception as error:  # a wrong number may be no number of its place at all
                return type(error).__name__
    return ""


def test_the_known_points_hold():
    for group in GROUPS:
        for check in points_of(group):
            assert all(check().values()), (check.__name__, check())


@pytest.mark.parametrize("group", GROUPS)
def test_no_wrong_constant_survives(group, record_property):
    """One test per group of files. Together they take at most 40 s of processor time."""
    start, fates, survivors = time.process_time(), Counter(), []
    checks = points_of(group)
    for name in GROUPS[group]:
        module = module_of(name)
        for function, node in bounds_of(name).items():
            mutants = mutants_of(module, function, node, set(EXPRESSIONS))
            seen_by = callers(module, function, checks) if mutants else []
            found = [(fate(module, mutant, seen_by), mutant) for mutant in mutants]
            fates.update(kind for kind, _ in found)
            survivors += [f"{name}:{m.line} {m.change}" for kind, m in found if not kind]
    seconds = time.process_time() - start
    print(f"{group}: {sum(fates.values())} mutants, {dict(fates)}, {seconds:.1f} s")
    assert not survivors, "\n".join(survivors)
    assert fates["value"] > 0.75 * sum(
        fates.values()
    )  # the rest crash: shapes, or counts as floats
    assert seconds <= 15  # 1 to 5 measured


def test_every_file_and_every_name_is_known(root):
    """New files are mutated or named above; what is named above exists."""
    files = {path.stem for path in Path(root, "theory").glob("*.py")}
    grouped = {name for names in GROUPS.values() for name in names}
    assert files == (grouped - {"methods"}) | set(OTHER_FILES) | set(GROUPS)
    for name, functions in LEFT_OUT.items():
        existing = functions_of(module_of(name))
        assert set(functions) <= set(existing) | {key.split(".")[0] for key in existing}
    texts = " ".join(
        ast.unparse(node) for name in grouped for node in bounds_of(name).values()
    )  # fmt: skip
    assert [text for text in EXPRESSIONS if text not in texts] == []


def test_checks_state_no_bound():
    """`bound=` of a check is a call or a name, or 1 or 0: a ratio or an identity, never a number.

    So no constant hides in the functions that are left out as checks.
    """
    n_checks = 0
    for name in (name for names in GROUPS.values() for name in names if name != "methods"):
        for node in functions_of(module_of(name)).values():
            if not is_check(node):
                continue
            n_checks += 1
            [bound] = [k.value for call in ast.walk(node) if isinstance(call, ast.Call)
                       and ast.unparse(call.func) == "Verdict"
                       for k in call.keywords if k.arg == "bound"]  # fmt: skip
            if isinstance(bound, ast.Constant):
                assert bound.value in (0.0, 1.0), (name, node.name)
            else:
                assert isinstance(bound, ast.Call | ast.Name | ast.Subscript), (
                    name,
                    ast.unparse(bound),
                )
    assert n_checks == len(STATEMENTS)


# Wrong bounds that checks once accepted.

RECORDED = [
    ("points_attention", "attention", "Comparison.bound_r",
     "row(self.x) * two(h.w_q @ h.w_k.mT) * dz", "0.8 * row(self.x) * two(h.w_q @ h.w_k.mT) * dz"),
    ("points_descent", "descent_rate", "pl_constant",
     "return 32", "return (32 if n_frames < 4 else 1.32 * 32)"),
    ("points_filter", "bilateral_window", "euclidean_bound", "1 + (sup - 1) / 2 + max", "1 + max"),
    ("points_descent", "steady_flicker", "repaired_gradient_bound",
     "2 * flicker_weight", "1.8 * flicker_weight"),
    ("points_attention", "attention", "Comparison.bound_a", "(2 * sqrt", "(2.2 * sqrt"),
    ("points_attention", "attention", "Comparison.bound_a",
     "two(self.x @ h.w_q @ h.w_k.mT)", "two(h.w_q @ h.w_k.mT)"),
]  # fmt: skip


@pytest.mark.parametrize("group, name, function, text, wrong", RECORDED)
def test_what_once_escaped_is_caught(group, name, function, text, wrong):
    module = module_of(name)
    source = ast.unparse(functions_of(module)[function])
    assert source.count(text) == 1
    [definition] = ast.parse(source.replace(text, wrong)).body
    mutant = Mutant(function, wrong, definition.lineno, compiled(module, definition))
    assert fate(module, mutant, callers(module, function, points_of(group))) == "value"


def test_known_points_are_part_of_the_verdict():
    """A check fails with its known points, and a mutant is undone afterwards."""
    good = Verdict("X.2", "x <= 1", "holds", "x <= 1", measured=1.0, bound=1.0)
    try:
        check = statement("X.2")(lambda: good)
        known_points("X.2")(lambda: {"known points: x": True})
        assert check().reproduced
        known_points("X.2")(lambda: {"known points: y": False})
        assert not check().reproduced and check().hypotheses["known points: x"]
    finally:
        del STATEMENTS["X.2"], KNOWN_POINTS["X.2"]

    module = module_of("attention")
    [mutant, *_] = mutants_of(module, "centred", functions_of(module)["centred"])
    before = running(module, "centred").__code__
    with swapped(module, mutant):
        assert running(module, "centred").__code__ is mutant.code
    assert running(module, "centred").__code__ is before
