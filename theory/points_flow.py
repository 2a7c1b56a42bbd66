"""Flows and errors at which the bounds of straight paths are attained. No search."""

import torch

from theory.flow_factors import (
    contraction,
    euler_factors,
    log_euler_bound,
    log_preimage_bound,
    missed,
    missed_bound,
    preimage_factors,
    shifted,
    shifted_bound,
)
from theory.flow_steps import iteration_errors, led_away, round_trip, schedule_of, uniform
from theory.verdict import attains, known_points
from vala_research.diffusion.schedule import sample

UNEVEN = torch.tensor([0.1, 0.3, 0.35, 0.9], dtype=torch.float64)


@known_points("flow")
def products() -> dict[str, bool]:
    """Each step's constant by the worst velocity through the library; fine flows as a whole."""
    one = torch.ones(1, dtype=torch.float64)
    ends = [float(sample(lambda z, t: -1.5 * z, one, schedule_of(UNEVEN[i : i + 2])))
            for i in range(3)]  # fmt: skip
    fine, part = uniform(8000), 0.25 + uniform(8000) / 2
    values = [euler_factors(levels, c).log().sum() for levels, c in ((fine, 2.0), (part, 1.0))]
    return {
        "known points: 1 + h L": attains(ends, euler_factors(UNEVEN, 1.5).tolist(), 1 - 1e-9),
        "known points: closed form": attains(
            values, [log_euler_bound(fine, 2.0), log_euler_bound(part, 1.0)], 0.999
        ),
    }


@known_points("flow-inversion")
def preimages() -> dict[str, bool]:
    """v = L z contracts by exactly q; exact steps; round trips through the library, any levels."""
    q, errors = iteration_errors(UNEVEN[:2], 3.0, is_linear=True)
    one, schedule = torch.ones(1, dtype=torch.float64), schedule_of(UNEVEN)
    grown = 1 / float(sample(lambda z, t: 1.2 * z, one, schedule))
    fine = uniform(8000)
    start = torch.cat([torch.zeros(1, dtype=torch.float64), UNEVEN[1:]])
    return {
        "known points: q": attains([errors[2] / errors[1]], [q], 1 - 1e-9)
        and attains(contraction(UNEVEN, 1.0), 0.55, 1 - 1e-9),
        "known points: exact steps": attains(grown, preimage_factors(UNEVEN, 1.2).prod(), 1 - 1e-9),
        "known points: exact steps, closed form": attains(
            preimage_factors(fine, 1.5).log().sum(), log_preimage_bound(fine, 1.5), 0.999
        ),
        "known points: one long exact step": attains(
            preimage_factors(UNEVEN[2:], 1e-3).log().sum(), log_preimage_bound(UNEVEN[2:], 1e-3),
            0.999,
        ) and log_preimage_bound(uniform(2), 1.0).allclose(torch.tensor(2.0).double()),
        "known points: round trips": attains(
            [round_trip(start, 1.5, 0.7)], [missed(start, 1.5, 0.7)], 1 - 1e-9
        ),
        "known points: round trips, closed form": attains(
            missed(fine, 2.0, 0.5), missed_bound(fine, 2.0, 0.5), 0.999
        ),
    }  # fmt: skip


@known_points("flow-filter")
def shifts() -> dict[str, bool]:
    """A constant shift through the library is the recursion; fine flows reach the closed form."""
    fine = uniform(8000)
    return {
        "known points: the recursion": attains(
            [led_away(UNEVEN, 1.5, 0.3)], [shifted(UNEVEN, 1.5, 0.3)], 1 - 1e-9
        ),
        "known points: closed form": attains(
            shifted(fine, 2.0, 0.5), shifted_bound(fine, 2.0, 0.5), 0.999
        ),
    }
