#!/usr/bin/env python3
"""Step 10: the parameters of every XP source, from a trained model.

    python xp_opt_allsources.py --data-dir data --model output_folder/
    python xp_opt_allsources.py --data-dir data --model output_folder/ --partition 100 7

Reads DATA_DIR/xp_opt_input_files/xp_opt_input_{fid}.h5 (step 9) and the trained model (step 8);
writes DATA_DIR/xp_opt_output_files/xp_opt_output_{fid}.h5, one row per row of the input, in its
order:

  gdr3_source_id, ra, dec
  stellar_params_est, stellar_params_err (N,6)
                           Teff (kK), [Fe/H], log g, E, parallax (mas), xi; the maximum of the
                           posterior, 1 sigma
  stellar_params_cov_triu, stellar_params_icov_triu (N,21)
                           upper triangles (row order) of the covariance and its inverse
  second_params_est (N,6), second_delta_ln_post (N,)
                           the best solution in another family of stars, where it is close, and
                           its ln posterior relative to the first's (NaN where there is none)
  chi2_opt, n_flux         chi^2 of the fluxes at the solution, number of fluxes with weight
  ln_prior, ln_post        ln of the prior at (Teff, [Fe/H], log g); the maximised objective
  quality_flags            bits of `QualityFlag`
  plx, plx_err, phot_{g,bp,rp}_mean_flux (+ _error), norm_dg, ruwe, input_flags: copied

A star without a usable spectrum, or whose solution has no proper covariance, has NaN parameters and
is flagged; none is left out. Size: 0.6 kB a star. Time: about 15 s for 65,000 stars on one core.
Memory: 1 GB. When it fails: the summary and the log name each bad shard and what to do; run the
same command again and only the missing ones are made.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import sys
from enum import IntFlag
from pathlib import Path

import numpy as np

import xp_utils
from shards import (
    ShardError,
    ShardReader,
    ShardWriter,
    UsageError,
    add_shard_arguments,
    provenance,
    run_shards,
    select_fids,
    setup_logging,
    shard_path,
    usage_exit,
)

SCRIPT = "xp_opt_allsources"
CHUNK_STARS = 8192       # rows held at a time: 62 MB of whitening
MODEL_FILE = "model.h5"

CHI2_PER_XP_FLUX = 2.0   # flag limits, as in the catalogue of Zhang, Green & Rix (2023)
MIN_XP_FLUXES = 20       # fewer say too little to solve for six parameters
PARALLAX_SIGMAS = 10.0

PHOT_COLUMNS = tuple(
    f"phot_{band}_mean_flux{error}" for band in ("g", "bp", "rp") for error in ("", "_error")
)
COPIED = ("ra", "dec", "plx", "plx_err", *PHOT_COLUMNS, "norm_dg", "ruwe", "input_flags")
OBSERVED = ("flux", "flux_err", "flux_sqrticov_tril")
# Inferred columns: shape after the star axis. float32; NaN where there is nothing to say.
INFERRED = {
    "stellar_params_est": (6,),
    "stellar_params_err": (6,),
    "stellar_params_cov_triu": (21,),
    "stellar_params_icov_triu": (21,),
    "second_params_est": (6,),
    "second_delta_ln_post": (),
    "chi2_opt": (),
    "ln_prior": (),
    "ln_post": (),
}
PARAMETERS = "Teff (kK), [Fe/H] (dex), log g (dex), E (units of the training set's reddening), " \
             "parallax (mas), xi"
DESCRIPTIONS = {
    "stellar_params_est": f"{PARAMETERS}: at the maximum of the posterior",
    "stellar_params_err": f"{PARAMETERS}: 1 sigma",
    "stellar_params_cov_triu": "upper triangle, row order, of the covariance",
    "stellar_params_icov_triu": "upper triangle, row order, of the inverse covariance",
    "second_params_est": f"{PARAMETERS}: best solution in another family of stars",
    "second_delta_ln_post": "ln posterior of that solution, relative to the best",
    "ln_prior": "ln of the prior of stellar types, per kK dex dex",
    "ln_post": "the maximised ln posterior, per unit of ln E, up to a constant",
}


class QualityFlag(IntFlag):
    """Bits of `quality_flags`. Bits 0-5 mean what they mean in the published catalogue."""

    TEFF_CONFIDENCE = 1    # confidence in Teff below 0.5
    FEH_CONFIDENCE = 2     # confidence in [Fe/H] below 0.5
    LOGG_CONFIDENCE = 4    # confidence in log g below 0.5
    CHI2 = 8               # chi^2 / 61 above 2 (of the fluxes used, for a star with fewer)
    LN_PRIOR = 16          # the prior there is lower than at all but 0.1% of the training stars
    PARALLAX = 32          # more than 10 sigma from the observed parallax
    NOT_CONVERGED = 64
    BAD_INPUT = 128        # no usable spectrum, or no proper covariance: parameters are NaN


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, metavar="OUTPUT_FOLDER",
                        help="the output folder of train.py")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    return parser.parse_args(argv)


def load_solver(path):
    """The `StarSolver` of a model file; ShardError where it is not whole."""
    from model import FluxModel, MixturePrior
    from star_solver import StarSolver

    with ShardReader(path) as reader:
        arrays = {name: reader.read(name) for name in reader.columns}
    try:
        return StarSolver(FluxModel.from_arrays(arrays), MixturePrior.from_arrays(arrays))
    except (KeyError, ValueError) as error:
        raise ShardError(f"{path}: not a model of train.py ({error}); train it again") from error


def check_wavelengths(reader, solver):
    """ShardError where the input was made for other wavelengths than the model's."""
    found = np.asarray(reader.attributes("flux").get("sample_wavelengths", ()))
    expected = solver.model.sample_wavelengths.numpy()
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6):
        raise ShardError(
            f"{reader.path}: flux has {found.size} sample_wavelengths that are not the model's "
            f"{expected.size}; make the inputs and the model with the same version of the project"
        )


def infer(table, solver):
    """The inferred columns of one chunk: {name: (N, ...)}; `table` holds OBSERVED and COPIED."""
    from star_solver import StarData, estimates

    used = np.isfinite(table["flux_err"])
    n_xp = used[:, :xp_utils.N_XP].sum(1)
    rows = np.flatnonzero(n_xp >= MIN_XP_FLUXES)
    out = {name: np.full((len(used), *shape), np.nan, "f4") for name, shape in INFERRED.items()}
    out["n_flux"] = used.sum(1).astype("i2")
    out["quality_flags"] = np.full(len(used), QualityFlag.BAD_INPUT.value, np.uint8)
    if not len(rows):
        return out
    data = StarData(*(table[name][rows] for name in (*OBSERVED, "plx", "plx_err")))
    best, second = solver.solve(data)
    first, other = estimates(best, solver.model), estimates(second, solver.model)
    triu = np.triu_indices(6)
    found = {
        "stellar_params_est": first.est,
        "stellar_params_err": first.err,
        "stellar_params_cov_triu": first.cov[:, triu[0], triu[1]],
        "stellar_params_icov_triu": first.icov[:, triu[0], triu[1]],
        "second_params_est": other.est,
        "second_delta_ln_post": best.phi - second.phi,
        "chi2_opt": best.chi2,
        "ln_prior": solver.prior.ln_density(best.u[:, :3]).numpy(),
        "ln_post": -best.phi,
    }
    found["second_delta_ln_post"][~np.isfinite(other.est[:, 0])] = np.nan
    for name, values in found.items():
        out[name][rows] = values
    out["quality_flags"][rows] = quality_flags(found, best.converged, n_xp[rows], data, solver)
    return out


def quality_flags(found, converged, n_xp, data, solver):
    """Quality flags (N,) uint8 of solved stars."""
    est = found["stellar_params_est"]
    conditions = {
        QualityFlag.CHI2: found["chi2_opt"] > CHI2_PER_XP_FLUX * n_xp,
        QualityFlag.LN_PRIOR: found["ln_prior"] < solver.prior.ln_prior_floor,
        QualityFlag.PARALLAX: np.abs(est[:, 4] - data.plx) > PARALLAX_SIGMAS * data.plx_err,
        QualityFlag.NOT_CONVERGED: ~converged,
        QualityFlag.BAD_INPUT: ~np.isfinite(est).all(1),
    }
    flags = sum(np.where(where, bit.value, 0) for bit, where in conditions.items())
    return flags.astype(np.uint8)


def make_shard(fid, output, *, data_dir, model_file, solver, argv):
    """Write the output of one shard; returns {what: number of stars} for the log."""
    source = shard_path(data_dir, "opt_input", fid)
    made_by = provenance(SCRIPT, argv, [source, model_file])
    counters = {"stars": 0} | {flag.name: 0 for flag in QualityFlag}
    with ShardReader(source, "gdr3_source_id") as reader:
        check_wavelengths(reader, solver)
        n_stars = reader.n_rows
        with ShardWriter(output, n_stars, "gdr3_source_id", made_by) as writer:
            create_datasets(writer, reader)
            for start in range(0, n_stars, CHUNK_STARS):
                names = ("gdr3_source_id", *COPIED, *OBSERVED)
                table = reader.read_table(names, start, min(start + CHUNK_STARS, n_stars))
                result = infer(table, solver)
                result |= {name: table[name] for name in ("gdr3_source_id", *COPIED)}
                writer.write_table(result, start=start)
                for flag in QualityFlag:
                    set_bits = result["quality_flags"] & flag.value
                    counters[flag.name] += int(np.count_nonzero(set_bits))
    counters["stars"] = n_stars
    return counters


def create_datasets(writer, reader):
    """All datasets of the output, so that a shard without stars has them too."""
    writer.create("gdr3_source_id", dtype="i8", description="Gaia DR3 source_id")
    for name, shape in INFERRED.items():
        writer.create(name, shape, description=DESCRIPTIONS.get(name))
    writer.create("n_flux", dtype="i2", description="fluxes with weight")
    bits = ", ".join(f"{flag.value}: {flag.name}" for flag in QualityFlag)
    writer.create("quality_flags", dtype="u1", description=bits)
    for name in COPIED:
        attrs = {k: v for k, v in reader.attributes(name).items() if k in ("units", "description")}
        writer.create(name, dtype=reader.read(name, 0, 0).dtype, **attrs)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    fids = select_fids(args, "opt_input")
    model_file = args.model / MODEL_FILE
    if not model_file.is_file():
        raise UsageError(f"{model_file}: no trained model there; give --model the folder that "
                         "train.py wrote with -o")
    log = setup_logging(SCRIPT, args.log, args)
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    solver = load_solver(model_file)
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [shard_path(args.data_dir, "opt_input", fid), model_file],
        output_of=lambda fid: shard_path(args.data_dir, "opt_output", fid),
        process=lambda fid, output, log: make_shard(
            fid, output, data_dir=args.data_dir, model_file=model_file, solver=solver, argv=argv),
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
