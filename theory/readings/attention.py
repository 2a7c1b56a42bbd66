"""C.10 to C.15 and the constant of softmax: attention.

arXiv 2504.16016 lists its statements by name up to 4.9 on its page; later numbers are inferred.
"""

from theory.readings.reading import Reading

ATTENTION = {
    "C.10": Reading(
        source="Theorem C.10, (84); 4.10 in arXiv 2504.16016 (inferred)",
        words="The output of cross-attention errs by at most gamma times the error of the tokens.",
        reading="X* solves (83); X_t are any queries. L_softmax = sqrt(d), the largest that the "
        "theorem allows.",
        charitable="(103) sets Q* = X_t W_Q: queries agree. Then equal tokens give equal outputs. "
        "gamma still fails (C.14), because of its missing factors.",
        proof="C3",
        quantity="ratio: error over (F)",
    ),
    "C.11": Reading(
        source="Lemma C.11, (86); 4.11 in arXiv 2504.16016 (inferred)",
        words="The error is a term of attention weights plus a term of values.",
        reading='As written. "(18)" in its first line should be (16), whose shapes do not compose.',
        charitable="As written.",
        proof="C3",
        quantity="value: largest relative error of the identity",
    ),
    "C.12": Reading(
        source="Lemma C.12, (98); 4.12 in arXiv 2504.16016 (inferred)",
        words="The term of attention weights is bounded by L_softmax |W_Q| |W_K| |V*| |dZ|_F.",
        reading="For any queries X_t.",
        charitable="The proof states two hypotheses: Q* = X_t W_Q (103) and |X_t|_F <= sqrt(d) "
        "(111). With both the lemma is true, even with L_softmax = 1/2.",
        proof="C3",
        quantity="ratio: |term A|_F over its bound",
    ),
    "C.13": Reading(
        source="Lemma C.13, (112), (113); 4.13 in arXiv 2504.16016 (inferred)",
        words="Softmax has norm at most 1, so the term of values is at most |W_V| |dZ|_F.",
        reading="The Frobenius norm of the n_q x n_tok matrix of weights, as written.",
        charitable="True for one query (n_q = 1). For any number it is true row by row, in "
        "|.|_row, which is what a distribution per row gives.",
        proof="C2",
        quantity="ratio: |P| over the root of its largest column sum",
    ),
    "C.14": Reading(
        source="Lemma C.14, (117), (118); 4.14 in arXiv 2504.16016 (inferred)",
        words="Together the error is at most gamma |dZ|_F, gamma = L_softmax |W_K| |W_V| / delta.",
        reading='gamma as in (118) and (84). "Absorbed" factors are 1. L_softmax = sqrt(d).',
        charitable="(117) keeps the factors. With Q* = X_t W_Q, |X_t|_F <= sqrt(d) and one query, "
        "(117) is true. Nothing leads from (117) to (118): delta does not occur in the derivation.",
        proof="C5",
        quantity="ratio: largest error of a row over (R)",
    ),
    "C.15": Reading(
        source="Corollary C.15; 4.15 in arXiv 2504.16016 (inferred)",
        words="With at least d shared and d unshared tokens, optimisation drives dZ to 0.",
        reading="T_share and the projection W are learnt; image tokens and text are given, as in "
        "(13) to (15).",
        charitable="If all of Z_final is free, dZ = 0 is reached trivially, with any number of "
        "tokens. The paper does not state this. With W alone, N_u <= d independent image tokens "
        "suffice: the condition is the other way round.",
        proof="C6",
        quantity="value: least |dZ|_F, reached by descent",
    ),
    "L_softmax": Reading(
        source="third condition of Theorem C.10; unnumbered",
        words="The Lipschitz constant of softmax is at most sqrt(d).",
        reading="A condition on the input, in l_2.",
        charitable="It always holds, so that it restricts nothing.",
        proof="C1",
        quantity="value: |softmax a - softmax b| / |a - b|",
    ),
}
