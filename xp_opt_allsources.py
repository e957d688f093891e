#!/usr/bin/env python3
"""Step 10: the parameters of every XP source, from a trained model.

    python xp_opt_allsources.py --data-dir data --model output_folder/
    python xp_opt_allsources.py --data-dir data --model output_folder/ --partition 100 7
    python xp_opt_allsources.py --data-dir data --model output_folder/ --samples 1000 --ids my.csv

Reads DATA_DIR/xp_opt_input_files/xp_opt_input_{fid}.h5 (step 9) and the trained model (step 8);
writes DATA_DIR/xp_opt_output_files/xp_opt_output_{fid}.h5, one row per row of the input, in its
order, with the datasets below; at the end DATA_DIR/report.html, a page on the catalogue, by the run
that makes the last shard (XPFWD_REPORT=off: none).

`stellar_params_*` are the forward model's posterior, its type pooled with the direct estimate of a
network (docs/model.md), or as it is where the model has no such network. The parameters are the
labels that the model was trained on, then xi, E, parallax; their names are in the attribute
`parameters`.

Parallaxes are used as the inputs have them. A model whose training had parallaxes of another scale
than Gaia's says so (train.py --parallax-scale): then they are left out, and flags that judge them
are not set; --use-parallaxes uses them all the same. The attribute `parallaxes` of the outputs says
which; outputs of the other are made again.

With --samples N --ids FILE nothing of that is made, but N draws from the posterior of each star of
a list (text, CSV, FITS, VOTable, HDF5, Parquet): DATA_DIR/xp_samples/xp_samples_{fid}.h5 of the
shards that have such stars, and not_sampled.csv there, which names every other id, and stars whose
draws are not to be used, with the reason. Reads the inputs alone, not the catalogue. 0.6 s and
48 kB a star with N = 1000.

A star without a usable spectrum, or whose solution has no proper covariance, has NaN parameters and
is flagged; none is left out. When it fails: the summary and the log name each bad shard and what to
do; run the same command again and only the missing ones are made. Results of an older model are
made again. A run of some shards alone, by another model than the others' results are of, is
refused (--allow-mixed-models); a model that is replaced meanwhile fails the shards that are left.
Exit status: 0 every selected shard is done, 1 some failed (or, with --samples, some ids have no
row), 2 wrong usage or missing inputs.
"""

import sys
from pathlib import Path

import numpy as np

from fitting.report.after import after_inference
from pipeline.chosen_stars import check_arguments
from pipeline.errors import ShardError, UsageError
from pipeline.provenance import made_from, provenance, see
from pipeline.read import open_shard
from pipeline.run import run_shards, setup_logging, usage_exit
from pipeline.schema import MODEL_FILE, Layout, flags, inferred_columns, resolved
from pipeline.select import (
    add_release_argument,
    add_shard_arguments,
    list_fids,
    number,
    select_fids,
    shard_path,
    step_parser,
    whole_array,
)
from pipeline.write import ShardWriter

SCRIPT = "xp_opt_allsources"
INPUT = "opt_input"
OUTPUT = "opt_output"
CHUNK_STARS = 32_768  # rows held at a time, 0.2 GB in all: stars left over are solved together
USED = "used"  # attribute `parallaxes` of the outputs
BATCH_STARS = {"CPU": 256, "GPU": 16_384}  # solved in one call, by default


def parse_args(argv=None):
    parser = step_parser(__doc__, OUTPUT, "samples")
    add_shard_arguments(parser)
    add_release_argument(parser)
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="OUTPUT_FOLDER",
        help="the output folder of train.py",
    )
    parser.add_argument(
        "--use-parallaxes",
        action="store_true",
        help="also where the model was trained on parallaxes of another scale",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all cores")
    parser.add_argument(
        "--batch-size",
        type=number(int, 1),
        metavar="STARS",
        help=f"stars solved in one call; default: {BATCH_STARS['CPU']}, on a GPU "
        f"{BATCH_STARS['GPU']}",
    )
    parser.add_argument(
        "--jobs",
        type=number(int, 1),
        default=1,
        help="shards at once: on a GPU, 2 or 3 keep it busy while others are read, sorted and "
        "written; default: 1",
    )
    parser.add_argument(
        "--allow-mixed-models",
        action="store_true",
        help="make some shards though the others keep the results of another model",
    )
    add_sample_arguments(parser)
    return parser.parse_args(argv)


def add_sample_arguments(parser):
    """Those of draws from the posteriors of chosen stars."""
    parser.add_argument(
        "--samples",
        type=number(int, 1),
        metavar="N",
        help="make no catalogue, but N draws from the posterior of each star of --ids",
    )
    parser.add_argument("--ids", type=Path, metavar="FILE", help="list of source ids")
    parser.add_argument("--id-column", metavar="NAME", help="of the list, where not evident")
    parser.add_argument(
        "--samples-out",
        type=Path,
        metavar="FOLDER",
        help="for the draws; default: DATA_DIR/xp_samples",
    )


def check_input(reader, trained, layout):
    """ShardError where the input was made for other wavelengths, or with another XP basis, than the
    model's, or is no file of step 9."""
    reader.check(resolved(INPUT, layout))
    model = trained.stellar
    found = np.asarray(reader.attributes("flux").get("sample_wavelengths", ()))
    expected = model.channels.wavelengths
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6):
        raise ShardError(
            f"{reader.path}: flux has {found.size} sample_wavelengths that are not the model's "
            f"{expected.size}; make the inputs and the model with the same version of the project"
        )
    basis, expected = reader.attrs.get("xp_basis", model.xp_basis), model.xp_basis
    if basis != expected:
        raise ShardError(
            f"{reader.path}: sampled with the XP basis {basis!r}, the model's is {expected!r}; "
            "make both with the same"
        )


def require_one_model(args, fids, model, log):
    """UsageError where the run would begin to mix models: it leaves out shards whose results are of
    others, and none of those is of this one.

    Where some are, another run began: this one goes on with it, which is said. A whole Slurm array
    leaves out nothing.
    """
    left_out = set(list_fids(args.data_dir, INPUT)) - set(fids)
    if not left_out or whole_array(args):
        return
    ours = model.entry["identity"]
    there = sorted(left_out & set(list_fids(args.data_dir, OUTPUT)))
    models = {fid: made_from(shard_path(args.data_dir, OUTPUT, fid), MODEL_FILE) for fid in there}
    others = [fid for fid in there if models[fid] not in (None, ours)]
    if not others:
        return
    said = (
        f"{args.data_dir}: {len(others)} shards that this run leaves out have results of another "
        f"model ({others[0]}: {models[others[0]]}) than {model.path} ({ours}): run"
    )
    if ours not in models.values() and not args.allow_mixed_models:
        raise UsageError(
            f"{said} all shards, as one command or a whole Slurm array, or use the former model; "
            "or give --allow-mixed-models"
        )
    log.warning("%s them again too", said)


def parallaxes_used(args, trained, log) -> str:
    """USED, or why parallaxes are left out, which is logged."""
    scale = trained.parallax_scale
    if args.use_parallaxes or not scale:
        return USED
    log.warning(
        "parallaxes are left out: the model was trained on %s; --use-parallaxes uses them", scale
    )
    return f"left out: the model was trained on {scale}"


def make_shard(fid, output, *, args, solver, trained, model, argv, parallaxes):
    """Write the output of one shard; returns {what: number of stars} for the log.

    model: the file of `trained`, as it was `Seen` before it was loaded.
    """
    from fitting.catalogue import infer
    from fitting.observed import without_parallax

    release, layout = args.release, Layout(args.release, trained.stellar.labels)
    bits = flags.quality_flag(layout.labels)
    datasets = resolved(OUTPUT, layout)
    copied = [name for name in datasets if name not in inferred_columns(layout.labels)]
    source = shard_path(args.data_dir, INPUT, fid)
    made_by = provenance(SCRIPT, argv, [source, model], release)
    counters = {flag.name: 0 for flag in bits}
    fine = ("xp_fine",) if len(trained.stellar.fine_wavelengths) else ()
    with open_shard(args.data_dir, INPUT, fid, release) as reader:
        check_input(reader, trained, layout)
        n_stars = reader.n_rows
        attrs = {"labels": layout.labels.to_json(), "xp_basis": trained.stellar.xp_basis}
        attrs |= {"parallaxes": parallaxes}
        with ShardWriter(output, n_stars, release.id_column, made_by, attrs) as writer:
            writer.create_columns(datasets)
            for start in range(0, n_stars, CHUNK_STARS):
                names = dict.fromkeys((*copied, "flux", "flux_err", *fine))
                table = reader.read_table(names, start, min(start + CHUNK_STARS, n_stars))
                seen = table if parallaxes == USED else without_parallax(table)
                result = infer(seen, solver, trained)
                writer.write_table(result | {name: table[name] for name in copied}, start=start)
                for name, n in flags.counts(bits, result["quality_flags"]).items():
                    counters[name] += n
    return {"stars": n_stars} | counters


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    check_arguments(args)
    fids = select_fids(args, INPUT)
    model_file = args.model / MODEL_FILE
    if not model_file.is_file():
        raise UsageError(
            f"{model_file}: no trained model there; give --model the folder that "
            "train.py wrote with -o"
        )
    log = setup_logging(SCRIPT, args.log, args)
    from fitting.model_file import load_model
    from fitting.star_solver import StarSolver
    from model import device_kind, set_threads  # TensorFlow takes seconds to load

    set_threads(args.threads)
    model = see(model_file)
    trained = load_model(model_file, args.release)
    if args.samples is None:
        require_one_model(args, fids, model, log)
    parallaxes = parallaxes_used(args, trained, log)
    kind = device_kind()
    solver = StarSolver(trained.stellar, args.batch_size or BATCH_STARS[kind])
    log.info("solved on the %s, %d stars in a call", kind, solver.batch_size)
    if args.samples is not None:
        from fitting.sampling.shards import sample_shards

        given = (solver, trained, model, argv, parallaxes, check_input, log)
        return sample_shards(SCRIPT, args, fids, *given)
    status = run_shards(
        SCRIPT,
        args,
        fids,
        inputs_of=lambda fid: [shard_path(args.data_dir, INPUT, fid), model],
        output_of=lambda fid: shard_path(args.data_dir, OUTPUT, fid),
        process=lambda fid, output, log: make_shard(
            fid,
            output,
            args=args,
            solver=solver,
            trained=trained,
            model=model,
            argv=argv,
            parallaxes=parallaxes,
        ),
        log=log,
        jobs=args.jobs,
        settings={"parallaxes": parallaxes},
    )
    after_inference(args, status, log)
    return status


if __name__ == "__main__":
    sys.exit(main())
