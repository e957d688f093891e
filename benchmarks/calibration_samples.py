"""Are the catalogue's errors those of the posterior? Draws from it against errors, by parameter.

    python benchmarks/calibration_samples.py [--model FOLDER --training-data FILE --stars N]

Draws 1,000 times from the posterior of some validation stars, with their parallax and with it
hidden (fitting/sampling), and compares with what step 10 says of them: standard deviation of the
draws over the error, of the forward model alone by the curvature (before the error factors) and as
the catalogue has it, and of the pool with the direct estimate; how far the mean of the draws is
from the estimate, in standard deviations. Prints 16%, 50% and 84% of the stars, how well the chains
mixed and the time a star, and writes samples.json and samples.png to --out. Takes 8 minutes.
"""

import argparse
import sys
import time

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import flags, load_release
from pipeline.select import number

DRAWS = 1000
SHOWN, TICKS = (0.5, 2.5), (0.5, 0.7, 1, 1.4, 2)  # ratios; what is beyond is in the last bin
SHARES = (0.16, 0.5, 0.84)
# What is compared: title, samples, estimate and error of the catalogue.
COMPARED = {
    "curvature": ("model_samples", "model_params_est", "curvature_err"),
    "forward model": ("model_samples", "model_params_est", "model_params_err"),
    "catalogue": ("stellar_samples", "stellar_params_est", "stellar_params_err"),
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    parser.add_argument(
        "--stars", type=number(int, 30), default=300, help="how many (default: %(default)s)"
    )
    return parser.parse_args(argv)


def read_stars(args):
    """Columns of some validation stars, spread evenly over all."""
    stars = common.validation_stars(args, (*common.observed_names(args), load_release().id_column))
    n = len(stars["plx"])
    rows = np.unique(np.linspace(0, n - 1, min(args.stars, n)).round().astype(int))
    return {name: values[rows] for name, values in stars.items()}


def compared(table, sampler, trained):
    """({title: (ratios (N, n), offsets (N, n))} of stars whose chains mixed, what is to be said of
    all chains {name: number})."""
    from fitting.catalogue import infer, observed_stars, trusted

    table, ids = dict(table), table[load_release().id_column]
    del table[load_release().id_column]
    began = time.process_time()
    drawn = sampler.columns(table, ids, DRAWS)
    spent = time.process_time() - began
    known = infer(table, sampler.solver, trained)
    rows, data, _ = observed_stars(table, trained.stellar)
    factors = np.full(known["model_params_err"].shape, np.nan)
    factors[rows] = trained.errors.of(trusted(data, sampler.solver)[0])[0]
    known["curvature_err"] = known["model_params_err"] / factors
    good = drawn["sample_flags"] == 0
    out = {}
    for title, (samples, est, err) in COMPARED.items():
        mean, sd = (f(drawn[samples][good].astype("f8"), 1) for f in (np.mean, np.std))
        out[title] = sd / known[err][good], (mean - known[est][good]) / sd
    size = drawn["effective_sample_size"]
    return out, {
        "stars": len(ids),
        "not mixed": int((drawn["sample_flags"] & flags.SampleFlag.NOT_MIXED > 0).sum()),
        "effective draws, median": float(np.nanmedian(size)),
        "effective draws, 5% of stars below": float(np.nanquantile(np.nanmin(size, 1), 0.05)),
        "acceptance, median": float(np.nanmedian(drawn["acceptance"])),
        "ms of CPU a star": 1e3 * spent / len(ids),
    }


def print_row(title, values):
    """Quantiles of values (N, n) in a line."""
    cells = np.nanquantile(values, SHARES, axis=0).T
    texts = (f"{low:.2f} / {middle:.2f} / {high:.2f}" for low, middle, high in cells)
    print(f"{title:15s}" + "".join(f"{text:>24s}" for text in texts))


def print_table(words, found, parameters):
    print(f"\n{words}: standard deviation of the draws over the error, 16% / 50% / 84% of stars")
    print(f"{'':15s}" + "".join(f"{name:>24s}" for name in parameters))
    for title, (ratio, _) in found.items():
        print_row(title, ratio)
    print(f"{words}: (mean of the draws - estimate) / standard deviation")
    for title in ("forward model", "catalogue"):
        print_row(title, found[title][1])


def draw(path, results, parameters):
    """Distributions of the ratios, a panel a parameter."""
    from pipeline.figures.style import BLUE, GREY, VERMILION, drawing, panel_columns

    title = "Draws from the posterior against the errors of step 10"
    edges = np.geomspace(*SHOWN, 37)
    with drawing(path, 6.0, title) as figure:
        axes = panel_columns(figure, len(parameters), [1], share_x=False)[0]
        for k, (ax, name) in enumerate(zip(axes, parameters, strict=True)):
            ax.axvline(1.0, color=GREY, lw=1)
            for (words, found), colour in zip(results.items(), (BLUE, VERMILION), strict=True):
                for kind, style in (("forward model", "-"), ("catalogue", ":")):
                    ratio = np.clip(found[kind][0][:, k], *SHOWN)
                    share = np.histogram(ratio, edges)[0] / len(ratio)
                    ax.stairs(share, edges, color=colour, ls=style, label=f"{kind}, {words}")
            ax.set_xscale("log")
            ax.set_xticks(TICKS, [f"{x:g}" for x in TICKS])
            ax.minorticks_off()
            ax.set_xlabel(f"{name}: sigma of draws / error")
            ax.set_ylabel("share of stars")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=2)


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    trained, solver = common.load_solver(args)
    from fitting.observed import without_parallax
    from fitting.sampling.samples import StarSampler

    sampler, stars, results, said = StarSampler(solver, trained), read_stars(args), {}, {}
    parameters = [p.name for p in trained.stellar.labels.parameters]
    sampler.columns({k: v[:1] for k, v in stars.items()}, stars[load_release().id_column][:1], 1)
    for words, table in (("with parallax", stars), ("parallax hidden", without_parallax(stars))):
        results[words], said[words] = compared(table, sampler, trained)
        print_table(words, results[words], parameters)
        print(", ".join(f"{name} {value:.5g}" for name, value in said[words].items()))
    draw(args.out / "samples.png", results, parameters)
    values = {
        words: {title: np.nanquantile(r[0], SHARES, axis=0).tolist() for title, r in one.items()}
        for words, one in results.items()
    }
    common.write_json(args.out / "samples.json", {"ratios": values, "chains": said})
    return 0


if __name__ == "__main__":
    sys.exit(main())
