"""What the whole sky costs: each step by its command line, on one core.

    python benchmarks/bench_sky.py [--model FOLDER] [--stars 65000] [--table FILE]

Lays demo stars, repeated under new ids, out as a data directory of one shard in a temporary folder
(3 GB), with spectra stored as step 1 stores them, and a compressed CSV as the archive publishes it.
Runs the steps that every star goes through, each on one thread, on few stars and on many: the
difference is what a star costs, the rest what a process costs before its first star. Prints of each
step the start-up; the CPU time a star; that times the core's peak in multiplying matrices (sgemm),
which leaves out how fast the machine is; the largest resident size; the size of the output; and
core-hours and terabytes of the whole sky. What every star goes through is the chain with spectra
sampled in step 1; step 1 and 9 are run with the coefficients kept, too, steps 9 and 10 without
parallaxes, and step 7 of all stars. Steps 2 and 3 ask an archive with canned answers on loopback:
what they wait for the real one is not in it. Step 4 reads synthetic tiles at the density of the
catalogue (bench_matching.py).

--table tables/whole_sky.toml writes the numbers where README's table comes from. The model must
exist (`make demo`). Takes about seven minutes.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import canned_archive
import common  # sets one thread, for the children too
import numpy as np
from bench_conversion import FID, archive_table, write_csv

from pipeline import compiled_programs
from pipeline.read import ShardReader
from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE, Layout, load_release, resolved
from pipeline.select import list_fids, shard_path
from pipeline.spectra_shards import Form
from pipeline.whole_files import write_text
from pipeline.write import ShardWriter
from pipeline.xp_basis import load_xp_basis
from xp_utils import sampled_columns

ALL_STARS = 219e6  # with XP spectra in DR3: Gaia Collaboration, De Angeli et al. 2023, A&A 674, A2
FEW = 500  # stars of the short runs
CONVERTED = 3000  # of the CSV, which takes long to write
BLOCK = 5000  # rows copied at a time
SGEMM_SIZE, SGEMM_REPEATS = 1024, 8


@dataclass
class Step:
    """A step to measure: words, {number of stars: command line} and of its output, whether it is a
    part of what every star goes through, and whether its first run on a machine compiles programs
    that later ones find."""

    words: str
    commands: dict
    outputs: dict
    everywhere: bool = True
    compiles: bool = False


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model",
        type=Path,
        default=common.DEFAULT_MODEL,
        metavar="FOLDER",
        help="output folder of train.py (default: demo/run/model)",
    )
    parser.add_argument("--stars", type=int, default=65_000, help="(%(default)s)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the numbers there")
    return parser.parse_args(argv)


def run(command):
    """(peak memory in GB, CPU seconds) of a script, which must succeed."""
    status, peak, cpu, _ = common.measured(command)
    if status:
        raise SystemExit(status)
    return peak, cpu


def sgemm_peak():
    """Floating-point operations a second of a product of float32 matrices on this core."""
    a = np.random.default_rng(0).normal(size=(SGEMM_SIZE, SGEMM_SIZE)).astype("f4")
    a @ a
    times = []
    for _ in range(SGEMM_REPEATS):
        start = time.process_time()
        a @ a
        times.append(time.process_time() - start)
    return 2 * SGEMM_SIZE**3 / min(times)


# ---- what is laid out ------------------------------------------------------------------------


def lay_out(folder, n, *options, kind="xp"):
    """A data directory of n stars in one shard, spectra as step 1 stores them; kind "sampled": as
    it does with --sampled."""
    run(["demo/build_sky.py", "--stars", "demo/stars.h5", "--out", folder, "--n", n, *options])
    release, basis = load_release(), load_xp_basis(load_release())
    form = Form() if kind == "xp" else Form(kind, lambda table: sampled_columns(table, basis))
    (fid,) = list_fids(folder, "xp")
    path = shard_path(folder, "xp", fid)
    with ShardReader(path) as reader:
        layout = resolved("xp", Layout(release)).only(reader.columns)
        made_by = {"script": "bench_sky", "release": release.name, "xp_basis": basis.source}
        plain = path.with_name("plain.h5")
        with ShardWriter(plain, reader.n_rows, "source_id", made_by) as writer:
            writer.create_columns(form.datasets(reader.columns, release))
            for k in range(0, n, BLOCK):
                (table,) = form.tables([reader.read_table(layout, k, min(k + BLOCK, n))])
                writer.write_table(table, start=k)
    plain.replace(path)
    return folder


def converted(folder, n, *options):
    """The command that converts n stars of the archive's CSV, and its output."""
    name = load_release().spectra.file_name.format(fid=FID) + ".csv.gz"
    path, out = folder / f"csv_{n}" / name, folder / f"converted_{n}{''.join(options)}"
    if not path.exists():
        path.parent.mkdir(parents=True)
        write_csv(path, archive_table(common.ROOT / "demo/stars.h5", n))
    return ["tools/convert_xp_csv.py", path, "--data-dir", out, *options], shard_path(
        out, "xp", FID
    )


def of_directories(words, script, kind, *options, data, everywhere=True, compiles=False):
    """The `Step` of a script that is run in data directories {number of stars: folder}."""
    commands = {m: [script, "--data-dir", d, *options] for m, d in data.items()}
    outputs = {m: shard_path(d, kind, list_fids(d, "xp")[0]) for m, d in data.items()}
    return Step(words, commands, outputs, everywhere, compiles)


def conversion(folder, words, *options, everywhere=True):
    """The `Step` of the conversion."""
    pairs = {m: converted(folder, m, *options) for m in (FEW, CONVERTED)}
    commands, outputs = ({m: pair[k] for m, pair in pairs.items()} for k in (0, 1))
    return Step(words, commands, outputs, everywhere)


def archive_steps(folder, n, stack):
    """Steps 2 to 4."""
    data, tables, tiles = canned_archive.lay_out(folder, n, FEW)
    urls = stack.enter_context(canned_archive.archives(tables))
    soon = canned_archive.SOON

    def asked(words, script, kind):
        return of_directories(words, script, kind, "--tap-url", urls[kind], *soon, data=data)

    match = ("match_unwise_gaia.py", "unwise", "--unwise-dir", tiles)
    return [
        asked("2 metadata, answers parsed", "query_xp_metadata.py", "metadata"),
        asked("3 2MASS, answers parsed", "query_2mass.py", "tmass"),
        of_directories("4 unWISE", *match, data=data),
    ]


def steps(folder, model, n, stack):
    """The steps to measure, in their order, each ready to be run after those before it; stack:
    `ExitStack` of what they need until then."""
    one = ("--shards", 1)
    skies, hidden, plain = {}, {}, {}
    for m in (FEW, n):
        skies[m] = lay_out(folder / f"sky_{m}", m, *one, kind="sampled")
        plain[m] = lay_out(folder / f"plain_{m}", m, *one)
        hidden[m] = lay_out(folder / f"hidden_{m}", m, *one, "--parallax", "none", kind="sampled")
    training = {m: d / "training_data.h5" for m, d in skies.items()}
    labelled = {
        m: ["compile_training_data.py", "--data-dir", d, "--output", training[m]]
        + ["--stellar-params", d / "training_params.h5"]
        for m, d in skies.items()
    }
    model_options = ("--model", model.resolve(), "--use-parallaxes", "--threads", 1)
    solve = ("xp_opt_allsources.py", "opt_output", *model_options)
    inputs = ("gen_xp_input_allsources.py", "opt_input")
    dust = ("query_reddening_gaia.py", "reddening", "--maps", "bh")
    beside = {"everywhere": False}
    return [
        conversion(folder, "1 conversion, --sampled", "--sampled"),
        conversion(folder, "1 the same, coefficients", **beside),
        *archive_steps(folder, n, stack),
        of_directories("5 reddening, a small map", *dust, data=skies),
        Step("7 training set", labelled, training, everywhere=False),
        of_directories("9 inputs", *inputs, data=skies),
        of_directories("9 inputs, of coefficients", *inputs, data=plain, **beside),
        of_directories("9 inputs, no parallax", *inputs, data=hidden, **beside),
        of_directories("10 inference", *solve, data=skies, compiles=True),
        of_directories("10 inference, no parallax", *solve, data=hidden, **beside),
    ]


# ---- what comes of it ------------------------------------------------------------------------


def cost_of(step, peak):
    """{what: number} of a step; peak: of sgemm, a second."""
    first = None
    if step.compiles:
        few = min(step.commands)
        _, first = run(step.commands[few])
        step.outputs[few].unlink()
    costs = {m: run(command) for m, command in step.commands.items()}
    (few, (_, start)), (many, (memory, cpu)) = sorted(costs.items())
    star = max(cpu - start, 0.0) / (many - few)
    size = step.outputs[many].stat().st_size / many
    return {
        "start_s": start - few * star,
        "star_us": 1e6 * star,
        "star_mflop": 1e-6 * star * peak,
        "memory_gb": memory,
        "star_kb": size / 1e3,
        "core_hours": star * ALL_STARS / 3600,
        "terabytes": size * ALL_STARS / 1e12,
        "everywhere": step.everywhere,
    } | ({} if first is None else {"first_start_s": first - few * star})


def line(words, cost):
    """A line of the table."""
    return (
        f"{words:26s} {cost['start_s']:9.1f} {cost['star_us']:9.1f} {cost['star_mflop']:9.1f} "
        f"{cost['memory_gb']:8.2f} {cost['star_kb']:8.2f} {cost['core_hours']:8.1f} "
        f"{cost['terabytes']:6.2f}"
    )


def as_toml(found, peak):
    """The numbers as a file that `pipeline.schema.costs` reads."""
    parts = [
        "# What the whole sky costs: written by benchmarks/bench_sky.py --table, one core.",
        f"sgemm_gflops = {1e-9 * peak:.0f}",
    ]
    for words, cost in found.items():
        parts += ["", f'["{words}"]']
        for name, value in cost.items():
            number = str(value).lower() if isinstance(value, bool) else f"{value:.4g}"
            parts.append(f"{name} = {number}")
    return "\n".join(parts) + "\n"


@usage_exit
def main(argv=None):
    args = parse_args(argv)
    common.require(args.model / MODEL_FILE)
    peak, found = sgemm_peak(), {}
    print(f"one core, {1e-9 * peak:.0f} Gflop/s in sgemm; {ALL_STARS / 1e6:.0f} million stars")
    print(f"{'':26s}  start (s)  us a star   Mflop   mem (GB)  kB a star  core-h     TB")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_sky_"))
        os.environ[compiled_programs.VARIABLE] = str(Path(folder) / "programs")  # none at first
        for step in steps(Path(folder), args.model, args.stars, stack):
            found[step.words] = cost_of(step, peak)
            print(line(step.words, found[step.words]), flush=True)
    for words, cost in found.items():
        if "first_start_s" in cost:
            print(
                f"{words}: starts in {cost['first_start_s']:.1f} s of CPU where nothing is compiled"
            )
    total = [cost for cost in found.values() if cost["everywhere"]]
    hours, size = (sum(cost[name] for cost in total) for name in ("core_hours", "terabytes"))
    print(f"in all, all stars with a parallax: {hours:.1f} core-hours, {size:.1f} TB")
    if args.table:
        write_text(args.table, as_toml(found, peak))
    return 0


if __name__ == "__main__":
    sys.exit(main())
