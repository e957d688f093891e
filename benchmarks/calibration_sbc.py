"""Simulation-based calibration: are the posteriors of simulated stars as wide as they should be?

    python benchmarks/calibration_sbc.py [--model FOLDER --training-data FILE] [--stars 16000]

Draws stars as the forward model believes they are (`fitting.simulation`; validation stars lend them
their errors and brightness) and infers them as any other star (`catalogue.infer`). What is judged
are the posteriors of the forward model alone (model_params_est, _err), as the direct estimate's
errors are of real stars and labels. Other draws, with the errors of training stars, gave the model
its error factors (`fitting.held_out.simulated_factors`).

If model and inference agree, the rank of each true value in its posterior (a Gaussian of the
catalogue's estimate and error) is uniform, and the 68% and 95% intervals hold 68% and 95% of the
truths. Also done with ranks among Metropolis samples of the posterior in the place of the Gaussian,
for some of the stars, and the widths of both are compared. Writes sbc.json and figures
to --out. Takes about three minutes.
"""

import argparse
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np
from scipy.special import ndtr, ndtri

from pipeline.run import usage_exit

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.8, 0.9, 0.95, 0.99)
TARGET = {0.68: (0.66, 0.70), 0.95: (0.94, 0.96)}
LOW_EXT = 0.1
PROPOSAL_SIZES = (0.5, 0.9, 1.4)  # of the curvature's sigma
THIN = 10


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    parser.add_argument("--stars", type=int, default=16000, help="of each kind (%(default)s)")
    parser.add_argument(
        "--sampled", type=int, default=512, help="stars whose posterior is sampled (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=6000, help="of a chain (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


# ----------------------------------------------------------------------------- sampled posteriors


def judged(model):
    """Places (k,) of the parameters that are judged, and their names: the labels and E."""
    at, parameters = model.coordinates, model.labels.parameters
    places = [*range(at.n_labels), at.ln_ext]
    return places, [parameters[k].title for k in places]


def sampled_ranks(data, solver, solution, truth, n_steps, rng):
    """Ranks (N, k) of the truths (N, k) among Metropolis samples of the posterior, NaN for a star
    without proper curvature; the samples' standard deviation (N, k); and their root mean square
    distance (N, k) from the maximum of the posterior, which is what the error factors make up for.

    The noise is evaluated at each sample, as `StarSolver.objective_at` does. ln parallax is at its
    best for each sample rather than marginalised, which is the same for a Gaussian.
    """
    from fitting.posterior import inverse_or_nan, physical

    model, at, places = solver.model, solver.at, judged(solver.model)[0]
    free = [k for k in range(len(at)) if k != at.ln_plx]
    precision = solver.gaussian(data, solution).precision
    cov = inverse_or_nan(precision)[:, free][:, :, free]
    good = np.isfinite(cov).all((1, 2))
    axes = np.zeros_like(cov)
    axes[good] = np.linalg.cholesky(cov[good])
    u = np.where(np.isfinite(solution.u), solution.u, 0.0)
    phi, samples = solver.objective_at(data, u).copy(), []
    for step in range(n_steps):
        trial = u.copy()
        size = rng.choice(PROPOSAL_SIZES)
        trial[:, free] += size * np.einsum("nij,nj->ni", axes, rng.normal(size=(len(u), len(free))))
        inside = (trial == at.clip(trial))[:, free].all(1)
        new = solver.minimise(data, at.clip(trial), evaluations=1)
        accept = inside & (np.log(rng.random(len(u))) < phi - new.phi)
        # new.u has the best ln parallax: far from it, float32 would cancel in chi^2.
        u[accept], phi[accept] = new.u[accept], new.phi[accept]
        if step >= n_steps // 10 and step % THIN == 0:
            samples.append(physical(u, model)[:, places])
    samples = np.array(samples)  # (steps, N, k)
    ranks = (samples < truth).mean(0)
    ranks[~good] = np.nan
    from_best = samples - physical(solution.u, model)[:, places]
    return ranks, samples.std(0), np.sqrt((from_best**2).mean(0))


# ------------------------------------------------------------------------------------- the score


def gaussian_ranks(columns, truth, places):
    """Ranks (N, k) of the truths in Gaussians of the catalogue's estimates and errors."""
    est, err = (columns[f"model_params_{name}"][:, places] for name in ("est", "err"))
    return ndtr((truth - est) / err)


def covered(ranks, levels):
    """Fraction (m, k) of ranks (N, k) within the central intervals of levels (m,)."""
    ranks = ranks[np.isfinite(ranks).all(1)]
    return np.array([np.mean(np.abs(ranks - 0.5) <= 0.5 * level, 0) for level in levels])


def summary(ranks, columns, model):
    """{group: {parameter: ...}}: coverage, mean rank, and the factors by which errors would have to
    grow for 68% and 95% to be inside. Groups are by estimate: by truth, ranks are not uniform."""
    from fitting.accuracy import groups_of

    est, at = columns["model_params_est"][: len(ranks)], model.coordinates
    groups = groups_of(est[:, at.z], model.labels.forward)
    groups[f"E < {LOW_EXT}"] = est[:, at.ln_ext] < LOW_EXT
    out = {}
    for group, rows in groups.items():
        chosen = ranks[rows & np.isfinite(ranks).all(1)]
        if not len(chosen):
            continue
        inside = covered(chosen, TARGET)
        pull = np.abs(ndtri(np.clip(chosen, 1e-6, 1 - 1e-6)))
        factor = [np.quantile(pull, level, 0) / ndtri(0.5 + 0.5 * level) for level in TARGET]
        out[group] = {"n": len(chosen)} | {
            name: {
                "inside 68%": inside[0, k],
                "inside 95%": inside[1, k],
                "mean rank": chosen[:, k].mean(),
                "factor 68%": factor[0][k],
                "factor 95%": factor[1][k],
            }
            for k, name in enumerate(judged(model)[1])
        }
    return out


def print_summary(title, scores):
    print(f"\n{title}")
    print("stars            n  parameter  inside 68%  inside 95%  mean rank  errors times")
    for group, values in scores.items():
        for name in [name for name in values if name != "n"]:
            one = values[name]
            good = all(a <= one[f"inside {level:.0%}"] <= b for level, (a, b) in TARGET.items())
            print(
                f"{group:12s} {values['n']:5d}  {name:9s} {one['inside 68%']:11.1%} "
                f"{one['inside 95%']:11.1%} {one['mean rank']:10.3f} {one['factor 68%']:7.2f} "
                f"{one['factor 95%']:5.2f}{'' if good else '  outside the target'}",
                flush=True,
            )


def run(kind, with_parallax, args, solver, trained, hosts):
    """Simulate, infer, print and draw one kind of stars; returns its scores for the JSON."""
    from fitting.catalogue import infer
    from fitting.observed import StarData
    from fitting.posterior import physical
    from fitting.simulation import simulate
    from pipeline import figures

    model, rng = solver.model, np.random.default_rng([args.seed, with_parallax])
    places, names = judged(model)
    table, u = simulate(model, hosts, args.stars, with_parallax, rng)
    truth = physical(u, model)[:, places]
    columns = infer(table, solver, trained)
    ranks = gaussian_ranks(columns, truth, places)
    alone = summary(ranks, columns, model)
    scores = {"forward model alone": alone}
    print_summary(f"{kind}: the forward model's estimates and errors", alone)
    figures.coverage(
        args.out / f"sbc_{kind.replace(' ', '_').replace('%', '')}.png",
        ranks[:, model.coordinates.z],
        np.array(LEVELS),
        covered(ranks, LEVELS)[:, model.coordinates.z],
        title=f"Simulated stars, {kind}",
        labels=model.labels.forward,
    )

    data = StarData.of_table(table, model.channels, slice(0, args.sampled))
    best = solver.solve(data).best
    few, *widths = sampled_ranks(data, solver, best, truth[: args.sampled], args.steps, rng)
    scores["sampled"] = summary(few, columns, model)
    print_summary(f"{kind}: the posterior sampled, {args.steps} steps", scores["sampled"])
    for name, width in zip(
        ("width of the samples", "their distance from the maximum"), widths, strict=True
    ):
        ratio = np.nanmedian(width / columns["model_params_err"][: len(few), places], 0)
        scores[f"{name} over error"] = dict(zip(names, ratio.tolist(), strict=True))
        words = ", ".join(f"{p} {x:.2f}" for p, x in zip(names, ratio, strict=True))
        print(f"{name} over the catalogue's error, median: {words}")
    return scores


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    hosts = common.validation_stars(args, ("flux", "flux_err"))
    scores = {
        kind: run(kind, with_parallax, args, solver, trained, hosts)
        for kind, with_parallax in (("20% parallax", True), ("no parallax", False))
    }
    common.write_json(args.out / "sbc.json", scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
