#!/usr/bin/env python3
"""Step 10: the parameters of every XP source, from a trained model.

    python xp_opt_allsources.py --data-dir data --model output_folder/
    python xp_opt_allsources.py --data-dir data --model output_folder/ --partition 100 7

Reads DATA_DIR/xp_opt_input_files/xp_opt_input_{fid}.h5 (step 9) and the trained model (step 8);
writes DATA_DIR/xp_opt_output_files/xp_opt_output_{fid}.h5, one row per row of the input, in its
order:

  gdr3_source_id, ra, dec
  stellar_params_est, stellar_params_err (N,6)
                           Teff (kK), [Fe/H], log g, E, parallax (mas), xi, and 1 sigma: the
                           forward model's posterior, its type pooled with the direct estimate of
                           a network (docs/model.md); as it is where the model has no such network
  stellar_params_cov_triu, stellar_params_icov_triu (N,21)
                           upper triangles (row order) of their covariance and its inverse
  model_params_est, model_params_err (N,6)
                           the same of the forward model alone: the maximum of its posterior
  second_params_est (N,6), second_delta_ln_post (N,)
                           the best solution in another family of stars, where it is close, and
                           its ln posterior relative to the first's (NaN where there is none)
  chi2_opt, n_flux         chi^2 of the fluxes at that maximum, number of fluxes with weight
  ln_prior, ln_post        ln of the prior and ln posterior there
  teff_confidence, feh_confidence, logg_confidence
                           probability of being within 3 sigma and a useful tolerance of the truth
  quality_flags            bits of `fitting.catalogue.QualityFlag`
  plx, plx_err, phot_{g,bp,rp}_mean_flux (+ _error), norm_dg, ruwe, input_flags: copied

A star without a usable spectrum, or whose solution has no proper covariance, has NaN parameters and
is flagged; none is left out. Size: 0.6 kB a star. Time: about 37 s for 65,000 stars on one core.
Memory: 1.5 GB. When it fails: the summary and the log name each bad shard and what to do; run the
same command again and only the missing ones are made.
Exit status: 0 every selected shard is done, 1 some failed, 2 wrong usage or missing inputs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pipeline.errors import ShardError, UsageError
from pipeline.provenance import provenance
from pipeline.read import ShardReader
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.select import add_shard_arguments, select_fids, shard_path
from pipeline.write import ShardWriter

SCRIPT = "xp_opt_allsources"
CHUNK_STARS = 8192  # rows held at a time: 4 MB of fluxes
MODEL_FILE = "model.h5"

PHOT_COLUMNS = tuple(
    f"phot_{band}_mean_flux{error}" for band in ("g", "bp", "rp") for error in ("", "_error")
)
COPIED = ("ra", "dec", "plx", "plx_err", *PHOT_COLUMNS, "norm_dg", "ruwe", "input_flags")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shard_arguments(parser)
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="OUTPUT_FOLDER",
        help="the output folder of train.py",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    return parser.parse_args(argv)


def load_model(path):
    """The `fitting.catalogue.TrainedModel` of a file; ShardError where it is not whole."""
    from fitting.catalogue import TrainedModel

    with ShardReader(path) as reader:
        arrays = {name: reader.read(name) for name in reader.columns}
    try:
        return TrainedModel.from_arrays(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{path}: not a model of train.py ({error}), or of another "
            "version of it; train it again (--overwrite)"
        ) from error


def check_input(reader, trained):
    """ShardError where the input was made for other wavelengths than the model's, or its fluxes
    have another shape."""
    found = np.asarray(reader.attributes("flux").get("sample_wavelengths", ()))
    expected = trained.stellar.flux.sample_wavelengths.numpy()
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6):
        raise ShardError(
            f"{reader.path}: flux has {found.size} sample_wavelengths that are not the model's "
            f"{expected.size}; make the inputs and the model with the same version of the project"
        )
    for name in ("flux", "flux_err"):
        shape = reader.read(name, 0, 0).shape[1:]
        if shape != expected.shape:
            raise ShardError(
                f"{reader.path}: {name} has rows of shape {shape}, expected "
                f"{expected.shape}; make the file again (step 9, --overwrite)"
            )


def make_shard(fid, output, *, data_dir, model_file, solver, trained, argv):
    """Write the output of one shard; returns {what: number of stars} for the log."""
    from fitting.catalogue import OBSERVED, QualityFlag, infer

    source = shard_path(data_dir, "opt_input", fid)
    made_by = provenance(SCRIPT, argv, [source, model_file])
    counters = {"stars": 0} | {flag.name: 0 for flag in QualityFlag}
    with ShardReader(source, "gdr3_source_id") as reader:
        check_input(reader, trained)
        n_stars = reader.n_rows
        with ShardWriter(output, n_stars, "gdr3_source_id", made_by) as writer:
            create_datasets(writer, reader)
            for start in range(0, n_stars, CHUNK_STARS):
                names = dict.fromkeys(("gdr3_source_id", *COPIED, *OBSERVED))
                table = reader.read_table(names, start, min(start + CHUNK_STARS, n_stars))
                result = infer(table, solver, trained)
                result |= {name: table[name] for name in ("gdr3_source_id", *COPIED)}
                writer.write_table(result, start=start)
                for flag in QualityFlag:
                    set_bits = result["quality_flags"] & flag.value
                    counters[flag.name] += int(np.count_nonzero(set_bits))
    counters["stars"] = n_stars
    return counters


def create_datasets(writer, reader):
    """All datasets of the output, so that a shard without stars has them too."""
    from fitting.catalogue import DESCRIPTIONS, INFERRED, QualityFlag

    writer.create("gdr3_source_id", dtype="i8", description="Gaia DR3 source_id")
    for name, shape in INFERRED.items():
        writer.create(name, shape, description=DESCRIPTIONS.get(name))
    writer.create("n_flux", dtype="i2", description="fluxes with weight")
    bits = ", ".join(f"{flag.value}: {flag.name}" for flag in QualityFlag)
    writer.create("quality_flags", dtype="u2", description=bits)
    for name in COPIED:
        attrs = {k: v for k, v in reader.attributes(name).items() if k in ("units", "description")}
        writer.create(name, dtype=reader.read(name, 0, 0).dtype, **attrs)


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    fids = select_fids(args, "opt_input")
    model_file = args.model / MODEL_FILE
    if not model_file.is_file():
        raise UsageError(
            f"{model_file}: no trained model there; give --model the folder that "
            "train.py wrote with -o"
        )
    log = setup_logging(SCRIPT, args.log, args)
    from fitting.star_solver import StarSolver
    from model import set_threads  # TensorFlow takes seconds to load: not before it is needed

    set_threads(args.threads)
    trained = load_model(model_file)
    solver = StarSolver(trained.stellar)
    return run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [shard_path(args.data_dir, "opt_input", fid), model_file],
        output_of=lambda fid: shard_path(args.data_dir, "opt_output", fid),
        process=lambda fid, output, log: make_shard(
            fid,
            output,
            data_dir=args.data_dir,
            model_file=model_file,
            solver=solver,
            trained=trained,
            argv=argv,
        ),
        log=log,
    )


if __name__ == "__main__":
    sys.exit(main())
