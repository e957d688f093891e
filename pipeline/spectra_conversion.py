"""The conversion of files of spectra into shards: what the tools of step 1 share."""

from pipeline import csv_rows, spectra_files
from pipeline.errors import UsageError, shortened
from pipeline.provenance import provenance
from pipeline.row_store import folder_beside
from pipeline.run import run_shards
from pipeline.select import chosen_partition, in_part, list_fids, output_path
from pipeline.spectra_merge import require_apart
from pipeline.spectra_others import read_others, sort_into_shards
from pipeline.spectra_shards import Form, convert, put_others_together
from pipeline.xp_basis import load_xp_basis


def add_form_argument(parser):
    """Add --sampled."""
    parser.add_argument(
        "--sampled",
        action="store_true",
        help="keep fluxes and errors at the release's wavelengths, and no coefficients",
    )


def chosen_fids(args, found) -> list[str]:
    """The fids of `found` that --shards and --partition (or Slurm) choose."""
    unknown = sorted(set(args.shards or ()) - set(found))
    if unknown:
        raise UsageError(f"--shards {shortened(unknown)}: not among the inputs")
    fids = sorted(set(args.shards or found))
    return in_part(fids, sorted(found), chosen_partition(args))


def log_slow_parts(log):
    """One line where a fast package is missing."""
    lacking = {
        "isal": spectra_files.igzip is not None,
        "pysimdjson": csv_rows.has_usual_rows(),
    }
    names = " and ".join(name for name, there in lacking.items() if not there)
    if names:
        log.warning(
            "%s: not installed, the conversion takes several times longer (pip install %s)",
            names, names.replace(" and", ""),
        )  # fmt: skip


def require_no_output_among(files, args):
    """UsageError where an input is what would be written."""
    folder = output_path(args.data_dir, "xp", "").parent.resolve()
    for file in files:
        if file.parent == folder:
            raise UsageError(
                f"{file}: is where the shards are written; give --data-dir another folder, or, "
                "where it is a shard already, nothing is to be done"
            )


def find_others(args, bulk, files, log):
    """The `Others` of files without a fid, sorted into shards; None without any."""
    if not files:
        return None
    folder = folder_beside(args.data_dir)
    others = read_others(files, args.release, log, folder)
    sort_into_shards(others, list(bulk), args.data_dir, args.release, log)
    return others


def form_of(args, sampled_columns) -> Form:
    """What the shards hold: coefficients or, with --sampled, what is made of them."""
    if not args.sampled:
        return Form()
    basis = load_xp_basis(args.release)
    return Form("sampled", lambda table: sampled_columns(table, basis), {"xp_basis": basis.source})


def find_inputs(paths, args) -> tuple[dict, list]:
    """({fid: [paths]} of bulk files, [paths] of others) among files and in folders.

    UsageError where there are none, or where one is what would be written.
    """
    bulk, files = spectra_files.find_files(paths, args.release)
    require_no_output_among([*files, *(file for group in bulk.values() for file in group)], args)
    return bulk, files


def convert_files(script, args, argv, inputs, log, sampled_columns) -> int:
    """Make the shards of spectra of files; the exit status.

    args: the options of `add_shard_arguments`, --release and --sampled; inputs: of `find_inputs`;
    sampled_columns(table, basis): the columns of --sampled.
    """
    bulk, files = inputs
    log_slow_parts(log)
    others = find_others(args, bulk, files, log)
    found = set(bulk) | (set(others.fid) - {""} if others else set())
    require_apart(found | set(list_fids(args.data_dir, "xp")))
    form = form_of(args, sampled_columns)

    def inputs_of(fid):
        return [*bulk.get(fid, ()), *(others.files_of(fid) if others else ())]

    def make(fid, output, log):
        made_by = provenance(script, argv, inputs_of(fid), args.release)
        if fid in bulk:
            return convert(bulk[fid], output, args.release, log, made_by, form, others, fid)
        return put_others_together(others, fid, output, log, made_by, form, args.overwrite)

    status = run_shards(
        script,
        args,
        chosen_fids(args, found),
        inputs_of=inputs_of,
        output_of=lambda fid: output_path(args.data_dir, "xp", fid),
        process=make,
        log=log,
        kind=form.kind,
    )
    if others and others.failed:
        log.error("%s: failed beside: %s", script, ", ".join(map(str, others.failed)))
        return status or 1
    return status
