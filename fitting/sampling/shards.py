"""Step 10 with --samples: files of draws from the posteriors of the stars of a list."""

from pathlib import Path

from fitting.observed import without_parallax
from fitting.sampling.samples import BATCH_STARS, StarSampler
from model import device_kind
from pipeline.chosen_stars import account, find_chosen, require_nothing_lost
from pipeline.errors import ShardError
from pipeline.id_lists import read_ids
from pipeline.joining import join_rows
from pipeline.provenance import Status, output_state, provenance
from pipeline.read import open_shard
from pipeline.run import run_shards
from pipeline.schema import Layout, resolved
from pipeline.select import shard_path
from pipeline.write import ShardWriter

INPUT, SAMPLES = "opt_input", "samples"
CHUNK_STARS = 512  # sampled at a time, or fewer where each has many draws
HELD_DRAWS = 1 << 19  # at a time


def sample_shards(script, args, fids, solver, trained, model, argv, parallaxes, check, log) -> int:
    """Make the files of draws of the shards `fids` that have stars of the list; the exit status.

    model: the file of `trained`, `Seen`; parallaxes: of `xp_opt_allsources.parallaxes_used`; check:
    its check of an input.
    """
    chosen = find_chosen(args, read_ids(args.ids, args.release, args.id_column))
    folder = args.samples_out or args.data_dir / "xp_samples"
    here = [fid for fid in chosen.of_shard if fid in set(fids)]
    chosen.of_shard = {fid: chosen.of_shard[fid] for fid in here}

    def path_of(fid):
        return Path(folder) / f"xp_samples_{fid}.h5"

    def inputs_of(fid):
        return [shard_path(args.data_dir, INPUT, fid), model]

    def settings(fid):
        return chosen.settings(fid) | {"parallaxes": parallaxes}

    if not args.overwrite:
        require_nothing_lost(chosen, folder, path_of)
    sampler = StarSampler(solver, trained, batch_size=BATCH_STARS[device_kind()])

    def process(fid, output, log):
        made_by = provenance(script, argv, inputs_of(fid), args.release)
        ids, attrs = chosen.of_shard[fid], settings(fid)
        return _write(fid, output, ids, args, sampler, made_by, attrs, check)

    status = run_shards(
        script, args, here, inputs_of, path_of, process, log, kind=SAMPLES, settings=settings
    )
    made = {fid: _whole(path_of(fid), inputs_of(fid), settings(fid)) for fid in here}
    lacking = account(chosen, made, folder, log)
    return status or int(lacking > 0)


def _whole(path, inputs, settings):
    """The path of an output, None where it was not made."""
    try:
        state = output_state(path, inputs, SAMPLES, settings)
    except ShardError:
        return None
    return path if state.status is Status.COMPLETE else None


def _write(fid, output, ids, args, sampler, made_by, attrs, check):
    """Write the draws of the stars ids (n,) of a shard; {what: number of stars} for the log."""
    trained, release, n_draws = sampler.trained, args.release, args.samples
    layout = Layout(release, trained.stellar.labels, n_draws)
    attrs |= {"labels": layout.labels.to_json(), "xp_basis": trained.stellar.xp_basis}
    fine = ("xp_fine",) if len(trained.stellar.fine_wavelengths) else ()
    names = ("flux", "flux_err", "plx", "plx_err", "fidelity_v2", *fine)
    step = max(1, min(CHUNK_STARS, HELD_DRAWS // n_draws))
    with open_shard(args.data_dir, INPUT, fid, release) as reader:
        check(reader, trained, layout)
        rows = join_rows(ids, reader.source_id())
        order = rows.argsort()
        with ShardWriter(output, len(ids), release.id_column, made_by, attrs) as writer:
            writer.create_columns(resolved(SAMPLES, layout))
            for start in range(0, len(ids), step):
                some = order[start : start + step]
                table = {name: reader.read_rows(name, rows[some]) for name in names}
                if attrs["parallaxes"] != "used":
                    table = without_parallax(table)
                found = sampler.columns(table, ids[some], n_draws)
                writer.write_table(found | {release.id_column: ids[some]}, start=start)
    return {"stars sampled": len(ids)}
