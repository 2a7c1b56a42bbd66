"""C.6 to C.9, DDIM and its inversion: the bilateral filter and the paths of diffusion."""

from theory.readings.reading import Reading

UNFILTERED = (
    "(54) defines x'_{t-1} = B(x_{t-1}); (65) subtracts (63) from (53), without a filter. x'_{t-1} "
    "is read as the output of (53). "
)
LITERAL = "Read as (54), the corrected bound gains + b(S) sigma sqrt(N), for the second filter."

FILTER = {
    "C.6": Reading(
        source="Theorem C.6, (55); 4.6 in arXiv 2504.16016",
        words="In the mean, one filtered step multiplies the error by at most a constant C, and "
        "adds the noise.",
        reading=UNFILTERED + "C may depend on the schedule and on L_eps, as written.",
        charitable="True for sigma -> 0, where nothing is filtered. With a filter every C fails, "
        "since x = xbar makes the right side 0. " + LITERAL,
        proof="B4",
        quantity="ratio: root of both sides, L_eps = 1",
    ),
    "C.7": Reading(
        source="Lemma C.7, (57), (62); 4.7 in arXiv 2504.16016",
        words="Filtering brings a latent no further from the ideal latent.",
        reading='For any xbar. "There exists K > 0" is read as a factor: ||B(x) - xbar|| <= K '
        "||x - xbar||. No K suffices, since x = xbar makes the right side 0.",
        charitable="For a constant xbar (58) is true; then K = sqrt(largest column sum) in l_2, "
        "and K = 1 in l_inf (C.7-fixed). B(x) against B(xbar), another reading of "
        '"non-expansive", fails too (C.7-max, C.7-euclid).',
        proof="B1",
        quantity="value: (|B(x) - xbar| - |x - xbar|) / (sigma sqrt(N)), three taps",
    ),
    "C.7-max": Reading(
        source='Lemma C.7, "non-expansive"; our finer claim',
        words="The filter stretches no difference of two images, in the largest site.",
        reading="|B(x) - B(y)|_inf <= |x - y|_inf at a fixed sigma. The paper claims l_2; "
        "l_inf is ours.",
        charitable="With weights from a fixed guide it is true.",
        proof="B2",
        quantity="value: largest absolute row sum of the Jacobian, three taps",
    ),
    "C.7-std": Reading(
        source="the library's default, `BilateralSettings`; our finer claim",
        words="The filter with sigma in standard deviations of the clip stretches no difference.",
        reading="sigma = c std(x) of all N values, recomputed for every image. The paper has a "
        "fixed sigma.",
        charitable="At a fixed sigma C.7-max holds, with a smaller constant.",
        proof="B9",
        quantity="value: 1 + 2 nu + c |r|, 3x3 window, c = 1",
    ),
    "C.7-euclid": Reading(
        source='Lemma C.7, "non-expansive"; our finer claim',
        words="The filter stretches no difference of two images, in l_2.",
        reading="|B(x) - B(y)|_2 <= |x - y|_2 at a fixed sigma.",
        charitable="With fixed symmetric weights and equal row sums it is true.",
        proof="B3",
        quantity="value: largest singular value of the Jacobian, three taps, 12 sites",
    ),
    "C.7-fixed": Reading(
        source="Lemma C.7, (58) to (62); our finer claim",
        words="With fixed weights, each site errs by at most the largest error, hence (62).",
        reading="The weights are those of one image, or xbar is constant, so that (58) holds.",
        charitable="In l_inf it is true, with constant 1. From (61) to (62) a factor sqrt(N) is "
        "lost.",
        proof="B3",
        quantity="value: |W(guide)| on 5 sites, three taps",
    ),
    "C.8": Reading(
        source="Lemma C.8, (64), (72); 4.8 in arXiv 2504.16016",
        words="One filtered step multiplies the error by at most C, and adds the noise.",
        reading=UNFILTERED + "alpha_t is the factor of one step, alpha_bar_t the product.",
        charitable="The algebra up to (68) is true, and C is the best constant, for the error "
        "after the filter. The filter's own error is missing. " + LITERAL,
        proof="B4",
        quantity="ratio: error after a step over its bound, L_eps = 1",
    ),
    "C.9": Reading(
        source="Lemma C.9, (74), (80), (82); 4.9 in arXiv 2504.16016",
        words="After all steps the error is at most C^n delta plus a sum of noises; the series "
        "converges.",
        reading=UNFILTERED + "(75) to (77) mix x' and x: (77) writes E_{t-1} for the error of x', "
        "and is unrolled as if x' were x. (74) and (80) contradict each other; both are judged.",
        charitable="With sigma -> 0, and <= for E|z|, (74) follows from (77), with C the largest "
        "C_t. The sum is finite for fixed n, which is all that (81) then claims. C > 1 always.",
        proof="B4",
        quantity="ratio: log of prod C_t, without its scale, over 2 L_eps ln kappa",
    ),
    "C.9-noise": Reading(
        source="Lemma C.9, (73) to (82); our finer claim",
        words="The mean norm of the noise is sqrt(d), and the norms of all noises add up.",
        reading='"E|z| = sqrt(d)" is an equality, as written, in d dimensions.',
        charitable="(73) needs only E|z| <= sqrt(d), which is true. Adding norms is a valid "
        "triangle inequality. Only the equality is false; the sum is loose.",
        proof="B6",
        quantity="value: root mean square of the noise at the end, N = 1",
    ),
    "DDIM": Reading(
        source="(8), (12), (53); unnumbered",
        words="The update of the paper is the DDIM step.",
        reading="Without noise and with exact coefficients.",
        charitable="Both move along -eps; the update (53) is the mean of DDPM. In fine steps it "
        "moves twice as far.",
        proof="B5",
        quantity="ratio: log of the product of factors, without its scale, over L_eps ln kappa",
    ),
    "DDIM-inversion": Reading(
        source="title of Theorem C.6; unnumbered",
        words="DDIM inversion is stable.",
        reading="Deterministic DDIM, from clean to noisy. (53) itself denoises. That the path "
        "leads back is our addition; appendix C does not claim it.",
        charitable="With L_eps <= 1 an error at most doubles. With q = (lambda_t - lambda_s) "
        "sqrt(alpha_bar_t) L_eps < 1 a step has exactly one preimage.",
        proof="B7",
        quantity="ratio: log of the product of factors, without its scale, over ln kappa",
    ),
}
