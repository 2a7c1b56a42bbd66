"""Statements of ours on rectified flows: no paper states them."""

from theory.readings.reading import Reading

OURS = "ours; the papers speak of diffusion paths only"
FLOW: dict[str, Reading] = {
    "flow": Reading(
        source=OURS,
        words="An error grows by at most 1 + h_t L_v in a step of a flow, and by exp(L_v) in all.",
        reading="Euler's method on z_s = (1 - s) z_0 + s n, from s = 1 to 0 or back, any levels.",
        charitable="As written. L_v is that of the velocity: bounds of L_eps or of x0's constant "
        "give L_v <= (1 + L_eps) / (1 - s) and L_v <= (1 + L_x0) / s.",
        proof="D1",
        quantity="ratio: log of the product of factors over L_v, L_v = 1",
    ),
    "flow-inversion": Reading(
        source=OURS,
        words="A step has one preimage where h_t L_v < 1. Plain inversion misses it.",
        reading="Plain inversion takes the velocity at the cleaner end, at the noisier time.",
        charitable="As written; the miss is of first order in the longest step.",
        proof="D2",
        quantity="ratio: miss of a round trip by steps over its closed form, L_v = V = 1",
    ),
    "flow-filter": Reading(
        source=OURS,
        words="A filter before every step leads the inversion away by beta exp(L_v) per step.",
        reading="beta = b(S) sigma sqrt(N) of B1: how far the filter moves the latents.",
        charitable="As written; more steps filter more often, so the bound grows with them.",
        proof="D3",
        quantity="ratio: recursion over its closed form, beta = L_v = 1",
    ),
}
