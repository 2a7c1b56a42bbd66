"""One reading of a statement; the symbols of the table; the paper's 15 numbered statements."""

from dataclasses import dataclass

NUMBERED = tuple(f"C.{i}" for i in range(1, 16))  # of arXiv 2501.04606, appendix C

# One meaning per symbol, in every line of the table.
LEGEND = """\
norms      |v| is Euclidean for vectors, spectral for matrices; |A|_F Frobenius; |A|_row the largest
           norm of a row; E the mean
loss       F_t: features of frame t = 1..T. s_t: cosine of F_t and F_{t+1}. L: temporal loss (22).
           m, R: least and largest |F_t|; M: the paper's upper bound of |F_t|. w: flicker weight.
           L_s = 2 c_T / ((T-1) m^2): smoothness of L. c_T: largest eigenvalue of a path with edge
           weights 2, 4, ..., 4, 2; k_T = 4, 6.50715, 8.97748 for T = 3, 4, >= 5. eta: step size
filter     x, xbar: latent and ideal latent of N sites. B: bilateral filter. sigma: its scale of
           intensity. S: weight of a window's neighbours, the centre being 1. W0: Lambert's function
           b(S) = u - 1/u, u^2 = 1 + 2 W0(S / (2 sqrt e)). std: deviation of all N values
           c: sigma / std. nu, r: stretch at fixed sigma and derivative by sigma, of one window
schedule   alpha_bar_t: level t = 0 (clean) to n (noisy); alpha_t = alpha_bar_t / alpha_bar_{t-1}
           eps: network, with Lipschitz constant L_eps. z: noise. e_t = x_t - xbar_t
           C_t = (1 + (1 - alpha_t) L_eps / sqrt(1 - alpha_bar_t)) / sqrt(alpha_t): factor (71)
           kappa(a) = (1 + sqrt(1 - a)) / sqrt(a). G_t = kappa(alpha_bar_t)^(2 L_eps) /
           sqrt(alpha_bar_t). DDIM's step is x -> A_t x + H_t eps(x)
flow       s_t: level t = 0 (data) to n (noise); h_t = s_t - s_{t-1}. v: velocity, with Lipschitz
           constant L_v and |v| <= V. q: largest h_t L_v. beta: how far a filter moves latents
attention  X_t: n_q queries. Z: n_tok tokens of width d; a star marks the ideal; dZ = Z - Z*.
           W_Q, W_K, W_V: projections; K, V = Z W_K, Z W_V. P: attention weights of (X_t, Z)
           X~ = P V. Pi: removes the mean of columns. diam: largest distance of two rows of V*
           gamma: the paper's constant (84). delta: least singular value of W_V"""


@dataclass(frozen=True)
class Reading:
    """A statement in plain English, how it is read, and how to read it most kindly.

    source: where arXiv 2501.04606 states it. words: the statement. reading: how ambiguous words and
    symbols are read. charitable: the most charitable reading, and what is true under it. proof:
    section of theory/README.md. quantity: what `measured` and `bound` are.
    """

    source: str
    words: str
    reading: str
    charitable: str
    proof: str
    quantity: str


def part_of(name: str) -> str:
    """The numbered statement that a row belongs to: "C.3a" -> "C.3"; "" for rows without one."""
    head = name.partition("-")[0].rstrip("abcdefghijklmnopqrstuvwxyz")
    return head if head in NUMBERED else ""
