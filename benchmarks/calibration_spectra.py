"""Are the mean spectra right? Observed against predicted fluxes of validation stars, by type.

    python benchmarks/calibration_spectra.py [--model FOLDER --training-data FILE]

The forward model predicts the spectrum of each star's label; brightness and E are the star's own,
by weighted least squares over the fluxes redder than RED_NM. Prints the median of observed over
predicted, less 1, and of the residual in units of the reported errors, at some wavelengths and in
the photometric bands, for groups of types and dust. A model that is right has neither. Writes
spectra.json to --out. Takes seconds.
"""

import argparse
import sys

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit
from pipeline.schema import load_release

RED_NM = 540.0  # bluer fluxes are predicted, and tell nothing of brightness and E
SCATTER = 0.05  # of fluxes about the mean spectrum, beside their errors, in the weights
SHOWN_NM = (392, 402, 412, 422, 442, 472, 502, 552, 692, 892)
# Of Teff (kK), log g and E as fitted.
GROUPS = {
    "giants < 4.2 kK, E < 0.3": lambda t, g, e: (t < 4.2) & (g < 3.5) & (e < 0.3),
    "giants < 4.2 kK, E > 0.3": lambda t, g, e: (t < 4.2) & (g < 3.5) & (e > 0.3),
    "giants > 4.6 kK, E < 0.3": lambda t, g, e: (t > 4.6) & (g < 3.5) & (e < 0.3),
    "giants > 4.6 kK, E > 0.7": lambda t, g, e: (t > 4.6) & (g < 3.5) & (e > 0.7),
    "dwarfs < 4.5 kK": lambda t, g, e: (t < 4.5) & (g > 3.8),
    "dwarfs > 5 kK": lambda t, g, e: (t > 5.0) & (g > 3.8),
    "all": lambda t, g, e: t > 0,
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    return parser.parse_args(argv)


def residuals(model, data):
    """ln observed over predicted (N, n) of `StarData` with labels, NaN where not used, the same
    over the reported relative errors, and E (N,)."""
    forward = model.is_forward
    z = model.standardised(data.theta)[:, forward].astype("f4")
    observed, wavelengths = data.observed, model.channels.wavelengths
    curve = model.flux.ext_curve(np.zeros(1, "f4"))[0].numpy()[0]
    left = observed.value - model.flux.ln_flux(z).numpy()
    weight = observed.used * (wavelengths > RED_NM) / (observed.rel_err**2 + SCATTER**2)
    columns = np.stack([np.ones_like(curve), -curve], 1)  # (n, 2)
    gram = np.einsum("wk,nw,wl->nkl", columns, weight, columns)
    own = np.linalg.solve(gram, np.einsum("wk,nw->nk", columns, weight * left)[:, :, None])[:, :, 0]
    left = np.where(observed.used > 0, left - own @ columns.T, np.nan)
    return left, left / observed.rel_err, own[:, 1]


@usage_exit
def main(argv=None):
    from fitting.training_set import read_training_data

    args = parse_args(argv)
    common.check_inputs(args)
    trained, _ = common.load_solver(args)
    model, labels = trained.stellar, trained.stellar.labels
    training = read_training_data(args.training_data, load_release())
    data = training.star_data(common.validation_rows(args, training.ids), model.channels)
    left, pulls, ext = residuals(model, data)
    teff, logg = (data.theta[:, labels.place[name]] for name in ("teff", "logg"))
    names, n_xp = model.channels.names, model.channels.n_xp
    places = [int(np.argmin(np.abs(model.channels.wavelengths[:n_xp] - x))) for x in SHOWN_NM]
    places += range(n_xp, len(names))
    words = [f"{x} nm" for x in SHOWN_NM] + [str(name) for name in names[n_xp:]]
    result = {}
    for title, values, unit in (("Median residual (%)", np.expm1(left), 100.0),
                                ("Median pull", pulls, 1.0)):  # fmt: skip
        print(f"\n{title:26s}{'stars':>6s}" + "".join(f"{word:>8s}" for word in words))
        for group, of in GROUPS.items():
            rows = of(teff, logg, ext)
            medians = unit * np.nanmedian(values[rows][:, places], 0) if rows.any() else []
            print(f"{group:26s}{rows.sum():6d}" + "".join(f"{x:8.2f}" for x in medians))
            result.setdefault(title, {})[group] = dict(
                zip(words, map(float, medians), strict=False)
            )
    common.write_json(args.out / "spectra.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
