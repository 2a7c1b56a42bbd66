"""What raters prefer: shares with intervals, strengths of editors, agreement, numbers of raters.

Wilson 1927 (intervals of shares); Bradley and Terry 1952, fitted as in Hunter 2004; Krippendorff
2004 (agreement).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib import rc_context
from scipy.stats import binomtest

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.statistics import clips_needed, paired_gain
from vala_research.evaluation.study.trials import QUESTIONS

N_RESAMPLES = 999


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of editors, group and question.

    share: of b among the answers that prefer one, with its 95% Wilson interval and the p-value of
    the sign test; these take all answers for independent. same: share of "no difference".
    by_rater: mean over raters of (b - a) / answers, from -1 to 1, with its bootstrap interval and
    the p-value of the sign-flip test, which count raters.
    """
    lines = []
    asked = rows.question.map(list(QUESTIONS).index)
    rows = rows.assign(asked=asked).sort_values(["pair", "asked"], kind="stable")
    for (group, a, b, question), part in rows.groupby(["group", "a", "b", "question"], sort=False):
        n_b, n_a = int((part.choice == b).sum()), int((part.choice == a).sum())
        score = by_rater(part).to_numpy()
        raters = paired_gain(score, np.zeros_like(score))
        decided = n_a + n_b
        test = binomtest(n_b, decided) if decided else None
        low, high = test.proportion_ci(method="wilson") if test else (math.nan, math.nan)
        lines.append({
            "group": group, "a": a, "b": b, "question": question, "n": len(part),
            "raters": raters.n, "share": n_b / decided if decided else math.nan, "low": low,
            "high": high, "p": test.pvalue if test else math.nan, "same": 1 - decided / len(part),
            "by_rater": raters.mean, "by_rater_low": raters.low, "by_rater_high": raters.high,
            "by_rater_p": raters.p_value,
        })  # fmt: skip
    return pd.DataFrame(lines)


def by_rater(rows: pd.DataFrame) -> pd.Series:
    """(b - a) / answers of each rater, from -1 to 1."""
    scores = (rows.choice == rows.b).astype(float) - (rows.choice == rows.a)
    return scores.groupby(rows.rater).mean()


def strengths(rows: pd.DataFrame, question: str = "overall", seed: int = 0) -> pd.DataFrame:
    """Bradley-Terry strengths of the editors: log odds to be preferred, of mean 0.

    "No difference" counts half for each. The 95% intervals resample raters. An editor that wins or
    loses everything has no finite strength; half an answer more for each side keeps it finite.
    """
    rows = rows[rows.question == question]
    names = list(dict.fromkeys([*rows.a, *rows.b]))
    if len(names) < 2:
        raise InputError(f"Nobody answered the question {question!r}: give answers to it.")
    place = {name: i for i, name in enumerate(names)}
    wins = np.zeros((rows.rater.nunique(), len(names), len(names)))  # rater winner loser
    raters = {rater: i for i, rater in enumerate(rows.rater.unique())}
    for line in rows.itertuples():
        i, j = place[line.a], place[line.b]
        won = {line.a: 1.0, line.b: 0.0}.get(line.choice, 0.5)
        wins[raters[line.rater], i, j] += won
        wins[raters[line.rater], j, i] += 1 - won

    met = wins.sum(0) + wins.sum(0).T > 0
    found = fitted(wins.sum(0), met)
    draw = np.random.default_rng(seed)
    resampled = np.array([
        fitted(wins[draw.integers(len(wins), size=len(wins))].sum(0), met)
        for _ in range(N_RESAMPLES)
    ])  # fmt: skip
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return pd.DataFrame({"editor": names, "strength": found, "low": low, "high": high})


def fitted(wins: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The most likely log strengths; wins: of row against column; met: which were compared."""
    wins = wins + 0.5 * met
    games, won = wins + wins.T, wins.sum(1)
    strength = np.ones(len(wins))
    for _ in range(10_000):
        with np.errstate(invalid="ignore"):
            chances = games / (strength[:, None] + strength[None])
        new = won / chances.sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / strength)).max() < 1e-10:
            break
        strength = new
    return np.log(new)


def agreement(rows: pd.DataFrame, question: str = "overall") -> float:
    """Krippendorff's alpha of the raters, for nominal answers: 1 is agreement, 0 is chance."""
    rows = rows[rows.question == question]
    counts = rows.groupby(["pair", "choice"]).size().unstack(fill_value=0)
    n = counts.sum(1)
    counts, n = counts[n > 1], n[n > 1]  # of a pair with one answer nothing can be said
    total = n.sum()
    if not total:
        return math.nan
    weighed = counts.div(n - 1, axis=0)
    coincidences = (counts.T @ weighed).to_numpy(float) - np.diag(weighed.sum())
    marginals = coincidences.sum(0)
    observed = total - np.trace(coincidences)
    expected = (total**2 - (marginals**2).sum()) / (total - 1)
    return float(1 - observed / expected) if expected > 1e-9 * total else 1.0


def raters_needed(rows: pd.DataFrame, difference: float, question: str = "overall") -> int:
    """How many raters find a mean difference (b - a) / answers of this size with 80% power.

    The spread over raters is that of these rows.
    """
    rows = rows[rows.question == question]
    return clips_needed(difference, float(by_rater(rows).std(ddof=1)))


@drawn
def figure(table: pd.DataFrame) -> Picture:
    """Shares of answers for a, neither and b, by question and comparison; `table` of `shares`."""
    groups = list(dict.fromkeys(zip(table.group, table.a, table.b, strict=True)))
    n_names = len({(a, b) for _, a, b in groups})
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 0.9 + 0.75 * len(groups)))
        axes = fig.subplots(len(groups), 1, squeeze=False, sharex=True)[:, 0]
        for ax, (group, a, b) in zip(axes, groups, strict=True):
            is_part = (table.group == group) & (table.a == a) & (table.b == b)
            part = table[is_part].set_index("question").reindex(list(QUESTIONS)).dropna(how="all")
            y = np.arange(len(part))[::-1]
            decided = 1 - part.same
            won = (part.share.fillna(0) * decided).to_numpy()
            ax.barh(y, won, color=COLOURS[0], label=b)
            ax.barh(y, part.same, left=won, color="#DDDDDD", label="no difference")
            ax.barh(y, 1 - won - part.same, left=won + part.same, color=COLOURS[1], label=a)
            for at, line, share in zip(y, part.itertuples(), decided, strict=True):
                ax.plot([line.low * share, line.high * share], [at, at], color="black", lw=1.2)
            ax.set_yticks(y, list(part.index))
            names = f"{b} (blue) or {a} (orange)" if n_names > 1 else ""
            ax.set_title(": ".join(filter(None, (group, names))))
            ax.grid(False)
        axes[-1].set(xlim=(0, 1), xlabel=f"share of answers, {int(table.raters.max())} raters")
        if n_names == 1:
            fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig
