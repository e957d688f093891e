"""Accuracy beside a discriminative peer that is trained on the same stars in the same run.

    python benchmarks/peer_mlp.py [--model FOLDER --training-data FILE] [--epochs 250]

The peer is the mean of some multilayer perceptrons (scikit-learn, hidden layers of 128, 128, 64)
from ln fluxes relative to the brightness (the mean ln flux of RP), 2MASS among them, and, where
there is a parallax, the absolute magnitude in Ks, to Teff, [Fe/H] and log g. It sees the stars that
the model was trained and calibrated on, with and without their parallax, networks of their own for
each, and gives no errors, no extinction and no distance. Both are scored on the validation stars,
which neither saw: robust scatter (1.4826 MAD) of estimate - label. The model's own estimates
without parallax are those of `catalogue.infer` with the parallaxes hidden. Writes peer.json to
--out. Takes about 4 minutes for 17,000 stars.

Of what was tried, these networks are the strongest: with less penalty they overfit (by 5 K), with
more, tanh, wider layers or the brightness as an input they are no better.
"""

import argparse
import sys
import time
import warnings

import common  # sets one thread, before NumPy is loaded
import numpy as np

from pipeline.run import usage_exit

HIDDEN = (128, 128, 64)
BATCH = 256
FIRST_RATE, LAST_RATE = 2e-3, 2e-5
NETWORKS = 4  # whose mean is the peer
PENALTY = 3e-2  # L2
N_RATES = 25  # steps in which the learning rate falls


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_arguments(parser)
    parser.add_argument("--epochs", type=int, default=250, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def read_stars(args):
    """(table of the training data, rows that the model was trained and calibrated on, validation
    rows)."""
    from pipeline.read import ShardReader
    from pipeline.schema import load_release

    names = common.observed_names(args)
    with ShardReader(args.training_data, load_release().id_column) as reader:
        ids, table = reader.source_id(), reader.read_table((*names, "stellar_type"))
    held_out = common.validation_rows(args, ids)
    return table, np.setdiff1d(np.arange(len(ids)), held_out), held_out


def inputs(table, channels, with_parallax):
    """What the network sees (N, p): ln fluxes less the brightness, XP and 2MASS; and ln of the flux
    in Ks at 1 kpc."""
    from fitting.observed import ln_flux_data

    observed = ln_flux_data(table["flux"], table["flux_err"], channels)
    bright, ks = observed.features[:, :1], int(np.flatnonzero(channels.names == "Ks")[0])
    seen = np.isin(channels.surveys, ("xp", "tmass"))
    columns = [np.where(observed.used > 0, observed.value - bright, 0.0)[:, seen]]
    if with_parallax:
        plx = np.maximum(table["plx"], 0.01 * table["plx_err"])
        columns.append((observed.value[:, ks] - 2 * np.log(plx))[:, None])
    return np.concatenate(columns, 1).astype("f8")


def train_network(x, y, epochs, seed):
    """An MLPRegressor trained on standardised x (N, p), y (N, K); the learning rate falls as a
    cosine, in steps."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    stages = min(N_RATES, epochs)
    network = MLPRegressor(
        hidden_layer_sizes=HIDDEN,
        batch_size=min(BATCH, len(x)),
        alpha=PENALTY,
        warm_start=True,
        random_state=seed,
        n_iter_no_change=10**6,
        tol=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(stages):
            fall = 0.5 * (1 + np.cos(np.pi * k / max(stages - 1, 1)))
            network.set_params(
                learning_rate_init=LAST_RATE + (FIRST_RATE - LAST_RATE) * fall,
                max_iter=epochs * (k + 1) // stages - epochs * k // stages,
            )
            network.fit(x, y)
    return network


def train_peer(x, label, epochs, seed):
    """A function (N, p) -> labels (N, K), trained on x and label."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    centre, width = label.mean(0), label.std(0)
    networks = [
        train_network((x - mean) / scale, (label - centre) / width, epochs, seed + k)
        for k in range(NETWORKS)
    ]
    return lambda new: (
        width * np.mean([network.predict((new - mean) / scale) for network in networks], 0) + centre
    )


def own_estimates(trained, solver, table, held_out):
    """The catalogue's labels (N, K) of the validation stars, with parallaxes and with them hidden,
    each {"catalogue", "forward model alone"}."""
    from fitting.catalogue import infer, label_estimates
    from fitting.observed import FINE, OBSERVED, without_parallax

    seen = {name: table[name][held_out] for name in (*OBSERVED, FINE) if name in table}
    found = [infer(one, solver, trained) for one in (seen, without_parallax(seen))]
    kinds = {"catalogue": "stellar", "forward model alone": "model"}
    return [
        {
            words: label_estimates(one, trained.stellar.labels, kind)[0]
            for words, kind in kinds.items()
        }
        for one in found
    ]


def score(est, label, labels):
    """{group: {label name: {"offset", "scatter"}}}; stars without estimate left out."""
    from fitting.accuracy import accuracy

    found = accuracy(est, np.ones_like(est), label, np.ones_like(label), labels)
    groups = {group: of for group, of in found.items() if isinstance(of, dict)}
    return {"finite": found["finite"]} | {
        group: {
            x.name: {key: of[x.name][key] for key in ("offset", "scatter")}
            for x in labels
            if x.name in of
        }
        for group, of in groups.items()
    }


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.check_inputs(args)
    table, training, held_out = read_stars(args)
    label = table["stellar_type"].astype("f8")
    trained, solver = common.load_solver(args)
    labels, channels = trained.stellar.labels, trained.stellar.channels
    own = own_estimates(trained, solver, table, held_out)
    result = {"training_stars": len(training), "validation_stars": len(held_out), "scores": {}}
    print(f"{len(training)} training, {len(held_out)} validation stars; robust scatter in ", end="")
    print(", ".join(f"{x.title} ({x.shown_unit})" for x in labels))
    for k, with_parallax in enumerate((True, False)):
        words = "20% parallax" if with_parallax else "no parallax"
        x, start = inputs(table, channels, with_parallax), time.process_time()
        peer = train_peer(x[training], label[training], args.epochs, args.seed)
        result[f"seconds, {words}"] = time.process_time() - start
        for name, est in (own[k] | {"MLP peer": peer(x[held_out])}).items():
            one = score(est, label[held_out], labels)
            result["scores"][f"{name}, {words}"] = one
            cells = "  | ".join(
                f"{group}: " + " ".join(f"{of[n]['scatter']:7.3f}" for n in of)
                for group, of in one.items()
                if isinstance(of, dict)
            )
            print(f"{name + ', ' + words:33s}{cells}", flush=True)
    common.write_json(args.out / "peer.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
