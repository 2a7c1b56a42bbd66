"""C.1 to C.5 and steady flicker: the temporal loss."""

from theory.readings.reading import Reading

TEMPORAL = {
    "C.1": Reading(
        source="Theorem C.1, (21), (22); 4.1 in arXiv 2504.16016",
        words="If all features have norm at most M, the temporal loss is differentiable and its "
        "gradient is Lipschitz.",
        reading="For all features with |F_t| <= M, those near 0 included.",
        charitable='(26) assumes "nondegenerate" features, "or a lower bound". With '
        "0 < m <= |F_t| the theorem is true: the constant is 2 c_T / ((T-1) m^2) along paths, and "
        "pi/2 times that between any two points. M plays no part.",
        proof="A3",
        quantity="ratio: curvature over 2 c_T / ((T-1) |F_t|^2)",
    ),
    "C.2": Reading(
        source="Lemma C.2, (23) to (31); 4.2 in arXiv 2504.16016",
        words="If all features have norm at most M, the gradient of the similarity is at most "
        "2 / M.",
        reading="|F| <= M is an upper bound, as written.",
        charitable='(26) takes "a lower bound implicitly provided by the normalization". If M is '
        "a lower bound, M <= |F|, or all norms are M, the lemma is true: the gradient is at most "
        "1 / M.",
        proof="A1",
        quantity="value: |grad| |F|",
    ),
    "C.3a": Reading(
        source="Lemma C.3, (32) to (38); 4.3 in arXiv 2504.16016",
        words="If all features have norm at most M, the gradient of the loss with respect to one "
        "frame is at most 8 (T-2) / (M (T-1)).",
        reading="M is an upper bound. (37) has 16 where (32) has 8; both are judged, and 8 is "
        "smaller.",
        charitable="With M <= |F_t|, the lower bound that (26) names, it is true, and "
        "loose: k_T <= 8 (T-2) for every T.",
        proof="A4",
        quantity="ratio: |grad| |F_t| (T-1) over k_T",
    ),
    "C.3b": Reading(
        source="Lemma C.3, (39); 4.3 in arXiv 2504.16016",
        words="So the gradient of the loss is Lipschitz with constant 16 / M.",
        reading="M is an upper bound; the constant holds for every M. Also tried with |F_t| = M "
        "and in the norm of (39), where M = .1 breaks it.",
        charitable='"Normalization" in (26) may mean unit norms. With |F_t| >= M and M >= .6854, '
        "unit norms included, 16 / M is valid for every T: pi/2 max_T 2 c_T / (T-1) = 10.97 <= "
        "16 M. As a law in M it is false, since the constant grows as 1 / M^2.",
        proof="A3.5",
        quantity="value: |grad L(F) - grad L(G)| / |F - G| at T = 3, m = 1",
    ),
    "C.4": Reading(
        source="Theorem C.4, (40), (46) to (52); 4.4 in arXiv 2504.16016",
        words="Gradient descent with eta < 2 / L lowers the temporal loss at every step.",
        reading="(40) steps along the gradient of the total loss (20), and L_temporal is watched.",
        charitable="(48) to (52) step along the gradient of L_temporal itself, and the abstract of "
        'arXiv 2504.16016 says "gradient descent on this objective". With the theorem\'s own '
        "supposition, a Lipschitz gradient, descent is then true. In the features the supposition "
        "holds from any start without a zero. The limit is judged in C.4a and C.4b.",
        proof="A5.1",
        quantity="ratio: curvature along a step over L_s, T = 3",
    ),
    "C.4a": Reading(
        source="Theorem C.4, last words; 4.4 in arXiv 2504.16016",
        words="Gradient descent converges to a local minimum.",
        reading="From every start, with eta < 2 / L.",
        charitable="In the features, for almost every start, and with eta < 1 / L_s, it is true, "
        "and the minimum is global. The paper states none of the three. In other parameters the "
        "end may be a local minimum with L = .334.",
        proof="A5.3",
        quantity="ratio: predicted over measured negative curvature at saddles",
    ),
    "C.4b": Reading(
        source="end of the proof of Theorem C.4; 4.4 in arXiv 2504.16016",
        words="The iterates converge to a minimiser, as the loss is convex.",
        reading='"If the loss is convex", says the paper; convex in the features, where steps '
        "are taken.",
        charitable="True with another hypothesis: no two neighbours become parallel. The rate is "
        "then linear.",
        proof="A5.4",
        quantity="ratio: mu L over |grad L|^2 / 2",
    ),
    "C.5": Reading(
        source="Lemma C.5, (41) to (45); 4.5 in arXiv 2504.16016",
        words="The temporal loss is convex in the similarities.",
        reading="As written: in s, not in F. D of (43) takes first differences, although the text "
        'says "second-order".',
        charitable="As written. In the features the loss is not convex: the midpoint of "
        "(e1, e1 + e2, e2) and (e1, e1, e1), both of loss 0, has loss .00147.",
        proof="A5.6",
        quantity="ratio: change of the gradient in s over its constant",
    ),
    "flicker": Reading(
        source="closing remarks of section C.1 (unnumbered)",
        words="A lower temporal loss means less flicker and smoother transitions.",
        reading="The loss as in (22), on features of any network; less loss means less flicker.",
        charitable="Beside the diffusion loss of (20), which ties features to the clip, frames "
        "cannot flicker freely. That is outside of the theorem. A clip that turns evenly has L = "
        "0 too.",
        proof="A6",
        quantity="ratio: curvature of the repaired loss over its bound",
    ),
}
