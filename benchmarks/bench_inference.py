"""Speed of the inference on one core, and how often it misses the best solution.

    python benchmarks/bench_inference.py [--model FOLDER --training-data FILE]

Times `catalogue.infer` (networks, start search, descents, last steps with the curvature, second
modes, covariance, pooling, flags, confidences) on the validation stars of a trained model, which
must exist (`make demo`), and in all also with their parallaxes hidden. Rates are per second of CPU
time, the median of several repetitions. Then solves some of the stars again from many starts:
random stellar types of the widened prior, and steps away from the solution found. The objective
depends on where the noise is evaluated, so each restart descends twice:

- with the noise held where the star's own solution is: one objective, on which any lower end is a
  miss;
- with the noise evaluated at its own start and, in further descents, at its own end, as
  `StarSolver.solve` does; an end that is elsewhere (more than 0.5 sigma away) and lower is a miss
  too: a better mode with a noise of its own. Ends of the same mode differ only in where their noise
  was evaluated; how often that alone makes more than 0.1 is printed for itself.

Of the restarts' ends those that are second modes that matter (of another family, more than 0.3 of z
away from the best, and within 2 of its ln posterior) are counted, too, and how many of them were
missed. All of it with parallaxes and, second modes being rare there, without.

Takes about four minutes for the demo's stars.
"""

import argparse
import sys
import time

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from xp_opt_allsources import CHUNK_STARS

WARM_UP_STARS = 600  # enough for each function to be compiled
MISSED = 0.1  # of the objective
NEAR = 5.0  # solutions this far above the best are not worth polishing
POLISH = 5  # descents
MOST_EVALUATIONS = 40  # of one
ELSEWHERE = 0.5  # sigma from the best: nearer, it is the same mode

Z_PERTURBATION = (1.0, 0.5, 1.0)  # of z: repeated for more labels
REST_PERTURBATION = (1.0, 1.0, 0.3)  # of xi, ln E, ln plx
RESTART_LN_E = (-4.0, 0.5)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser, out=False)
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--stars", type=int, default=20_000, help="timed, validation stars repeated (%(default)s)"
    )
    parser.add_argument("--checked", type=int, default=2000, help="solved again (%(default)s)")
    parser.add_argument("--restarts", type=int, default=24, help="of each (%(default)s)")
    return parser.parse_args(argv)


def repeated(table, n):
    """n rows of a table of columns, from its first on, again and again."""
    rows = np.arange(n) % len(table["plx"])
    return {name: column[rows] for name, column in table.items()}


def timed(table, solver, trained, repeats):
    """Median CPU seconds of `catalogue.infer` in all, and those of its parts."""
    from fitting import catalogue

    watch = common.Stopwatch()
    if solver.model.direct is not None:
        watch.wrap(solver, "seen", "networks on what is observed")
        watch.wrap(catalogue, "pool", "pooling")
    watch.wrap(solver.starts, "find", "start search")
    watch.wrap(solver, "minimise", "descents")
    watch.wrap(solver, "settle", "last steps, curvature")
    watch.wrap(catalogue, "estimates", "covariance")
    watch.wrap(catalogue, "widened", "second modes, factors")
    watch.wrap(catalogue, "_confidences", "confidences")
    n, totals, parts = len(table["plx"]), [], []
    for _ in range(repeats):
        watch.seconds = {}
        start = time.process_time()
        for k in range(0, n, CHUNK_STARS):
            catalogue.infer(
                {name: v[k : k + CHUNK_STARS] for name, v in table.items()}, solver, trained
            )
        totals.append(time.process_time() - start)
        parts.append(watch.seconds)
    watch.unwrap()
    return np.median(totals), {name: np.median([part[name] for part in parts]) for name in parts[0]}


def restarts(solver, u, n, rng):
    """Starts (M, n, p) for solutions u (M, p): half of them types of the prior, half near u."""
    from fitting.starts import TEMPLATE_WIDENING

    at = solver.at
    size = np.concatenate([np.resize(Z_PERTURBATION, at.n_labels), REST_PERTURBATION])
    out = u[:, None] + size * rng.normal(size=(len(u), n, len(at)))
    half = n // 2
    z = solver.model.prior.sample(len(u) * half, rng, TEMPLATE_WIDENING)
    out[:, :half] = u[:, None]
    out[:, :half, at.z] = z.reshape(len(u), half, at.n_labels)
    out[:, :half, at.ln_ext] = rng.uniform(*RESTART_LN_E, (len(u), half))
    return at.clip(out).astype("f4")


def polish(solver, data, u, rows):
    """`Solution` of POLISH further descents in turn from u (M, p), the noise evaluated anew for
    each, until nothing moves."""
    for _ in range(POLISH):
        solution = solver.finish(data, u, rows=rows)
        u = solution.u
    return solution


def lowest(phi, star, n):
    """The least phi (M,) of each of n stars, star (M,) being whose it is; inf where none is."""
    out = np.full(n, np.inf)
    np.fmin.at(out, star, phi)
    return out


def excess(data, solver, u, n_restarts, seed=0):
    """How far the objective of the solutions u (N, p) is above the best of many restarts.

    Returns three arrays (N,): above the best with the noise held at u; above the best of those that
    ended elsewhere, each with a noise of its own; and of those that ended in the same mode. And the
    ends: z (M, K), phi (M,), and whose they are (M,).
    """
    from fitting.posterior import estimates, physical

    n = len(data)
    own = solver.minimise(data, u, MOST_EVALUATIONS)
    star = np.repeat(np.arange(n), n_restarts)
    starts = restarts(solver, u, n_restarts, np.random.default_rng(seed)).reshape(-1, u.shape[1])
    held = solver.minimise(data, starts, MOST_EVALUATIONS, star, noise_at=u[star])
    ends = solver.finish(data, starts, rows=star)
    near = np.flatnonzero(ends.phi < lowest(ends.phi, star, n)[star] + NEAR)
    ends, star_of_end = polish(solver, data, ends.u[near], star[near]), star[near]
    here = estimates(solver.gaussian(data, own, over_a_sigma=False), solver.model)
    there = physical(ends.u, solver.model)
    away = (np.abs(here.est[star_of_end] - there) / here.err[star_of_end])[:, solver.at.z]
    same = away.max(1) < ELSEWHERE
    best = (
        lowest(held.phi, star, n),
        lowest(ends.phi[~same], star_of_end[~same], n),
        lowest(ends.phi[same], star_of_end[same], n),
    )
    return [own.phi - phi for phi in best], (ends.u[:, solver.at.z], ends.phi, star_of_end)


def second_modes(modes, ends, solver):
    """(number of stars with a second mode that matters among the ends, of `excess`, and their
    `Modes`; how many of these the `Modes` have not)."""
    from fitting.second_modes import APART, NEAR

    z, phi, star = ends
    families, theta = solver.families, solver.model.theta
    best, second = modes.best.u[:, solver.at.z], modes.second.u[:, solver.at.z]
    away = np.abs(z - best[star]).max(1) > APART
    other = families.of(theta(z)) != families.of(theta(best))[star]
    near = phi < modes.best.phi[star] + NEAR
    matters = np.flatnonzero(away & other & near)
    with np.errstate(invalid="ignore"):
        seen = np.abs(z - second[star]).max(1)[matters] < APART
    found, there = np.unique(star[matters[seen]]), np.unique(star[matters])
    return len(there), len(np.setdiff1d(there, found))


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    from fitting.catalogue import infer
    from fitting.observed import StarData, without_parallax

    table = common.validation_stars(args, common.observed_names(args))
    infer(repeated(table, WARM_UP_STARS), solver, trained)
    n = max(args.stars, 1)
    total, parts = timed(repeated(table, n), solver, trained, args.repeats)
    print(f"inference of {n} stars ({len(table['plx'])} validation stars, repeated), one core")
    print(f"  catalogue.infer                 {n / total:10.0f} stars/s")
    parts["the rest"] = total - sum(parts.values())
    for name, seconds in parts.items():
        print(f"    {name:22s} {seconds / total:8.1%} {1e6 * seconds / n:9.1f} us a star")
    hidden, _ = timed(without_parallax(repeated(table, n)), solver, trained, args.repeats)
    print(f"  the same stars, parallaxes hidden {n / hidden:8.0f} stars/s")

    rows = np.random.default_rng(0).permutation(len(table["plx"]))[: args.checked]
    data = StarData.of_table(table, trained.stellar.channels, rows)
    for words, shown in (("", data), (", parallaxes hidden", data.without_parallax())):
        check(words, shown, solver, args.restarts)
    return 0


def check(words, data, solver, n_restarts):
    """Print how often the solutions of stars are not the best there is."""
    direct = solver.seen(data).direct
    modes = solver.solve(data, direct)
    (held, elsewhere, same), ends = excess(data, solver, modes.best.u, n_restarts)
    n = len(data)
    print(f"solutions of {n} stars{words} against the best of {n_restarts} restarts each")
    if solver.model.search is not None:
        searched = solver.model.search.worth(data, direct[:, :, solver.model.is_forward])
        print(f"  searched for other modes:       {searched.mean():6.2%}")
    for limit in (MISSED, 1.0):
        missed = (held > limit) | (elsewhere > limit)
        print(
            f"  objective more than {limit:.1f} above: {missed.mean():6.2%} (with the same noise "
            f"{np.mean(held > limit):.2%}, in another mode {np.mean(elsewhere > limit):.2%}; by "
            f"the noise alone {np.mean(same > limit):.2%})"
        )
    print(
        "  second modes that matter:       {:6d}, missed {}".format(
            *second_modes(modes, ends, solver)
        )
    )
    print(f"  not converged:                  {1 - modes.best.converged.mean():6.2%}")


if __name__ == "__main__":
    sys.exit(main())
