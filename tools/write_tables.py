#!/usr/bin/env python3
"""Write the tables of the documentation that come from the schema (pipeline/schema/).

    python tools/write_tables.py
    python tools/write_tables.py --check

In each file of PAGES, what stands between a line `<!-- table: NAME -->` and the next line
`<!-- end -->` is replaced by the table NAME, which is one of

  files                  a section on each kind of file, with the table of its datasets
  a kind of file         the table of its datasets alone, as of opt_output
  steps                  the commands, what each makes, what it costs for a million stars
  costs                  size, time and memory of each step (tables/costs.toml)
  whole_sky              the same of the whole sky, measured (tables/whole_sky.toml)
  cluster                the jobs that cluster/submit_all.sh makes of the whole sky
  more_stars             an extrapolation of the costs to ten times as many stars
  folders                the folders of the data directory, and what fills them
  parameters             the parameters of a star, in the order of stellar_params_est
  bands                  the photometric bands of the flux vector
  quality_flags, input_flags, parallax_zeropoint_flags, coverage,
  sample_flags                               the bits of flags

for the default release and labels. Exit status: 0; with --check, which changes nothing, 1 where a
table is out of date; 2 where a page asks for a table that there is not.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from cluster import plan
from pipeline.schema import (
    BANDS,
    COSTS,
    DEFAULT_LABELS,
    FILES,
    KINDS,
    NOISES,
    STARS,
    SURVEYS,
    WHOLE_SKY,
    flags,
    rate_of,
    resolved,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/steps.md",
    "docs/files.md",
    "docs/flags.md",
    "docs/speed.md",
    "docs/cluster.md",
    "data/README.md",
)
DR3_SHARDS, DR3_STARS, PARTS = 3386, 219e6, 100  # of the archive's spectra, and parts by default
SKIES = {"220 million": 220e6, "2.2 billion": 2.2e9}  # of DR3, and of a release ten times as large
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
OPENED = re.compile(r"<!-- table:")
# What is no shard, and who makes it.
SINGLE_FILES = {
    "sampled": "with `--sampled`, in the place of the shards of `xp`",
    "training": "`training_data.h5`",
    "validation": "`output_folder/validation.h5`",
    "samples": "`data/xp_samples/xp_samples_{fid}.h5`, with `--samples`",
}
LABELS_STEP = (6, "(your own)", "stars with known labels: `training_params.h5`", "", "", "")
MODEL = "the model, its figures, and how good it is: `output_folder/`"
TRAINING = 8  # the step whose cost does not follow the number of stars
KINDS_STEPS = {kind.step for kind in KINDS.values()}  # made of the whole sky
FLAGS = {
    "quality_flags": flags.quality_flag(DEFAULT_LABELS),
    "input_flags": flags.InputFlag,
    "parallax_zeropoint_flags": flags.ZeroPointFlag,
    "coverage": flags.Coverage,
    "sample_flags": flags.SampleFlag,
}


EVERY_DATASET = ("units", "description", "ucd")  # attributes


class NoTableError(Exception):
    """A page asks for what there is not; the message says what."""


# ---- tables ----------------------------------------------------------------------------------


def table(heads, rows) -> str:
    """A Markdown table; cells as they are, but for the bar."""
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "".join(f"| {' | '.join(line)} |\n".replace("  ", " ") for line in lines)


def place_of(kind) -> str:
    """Where files of a kind lie."""
    if kind in KINDS:
        return f"`data/{KINDS[kind].folder}/{KINDS[kind].prefix}_{{fid}}.h5`"
    return SINGLE_FILES[kind]


def dataset_row(data):
    """The row of a `schema.Dataset`."""
    unit, text, ucd = (data.attributes.get(key, "") for key in EVERY_DATASET)
    if text.startswith("bits: "):
        text = "bits: see [flags](#flags)"
    shape = ", ".join([data.axis, *map(str, data.shape)])
    return f"`{data.name}`", data.dtype, shape, unit, text, ucd and f"`{ucd}`"


def datasets_table(kind) -> str:
    """The datasets of a kind of file."""
    heads = ("dataset", "type", "shape", "unit", "meaning", "UCD")
    return table(heads, map(dataset_row, resolved(kind, axes=(STARS, NOISES)).values()))


def further_attributes(kind) -> str:
    """What datasets have beside their unit, words and UCD; "" where none has anything."""
    having = {}
    for data in resolved(kind).values():
        for name in data.attributes.keys() - set(EVERY_DATASET):
            having.setdefault(name, []).append(f"`{data.name}`")
    lines = (f"`{name}` (of {', '.join(having[name])})" for name in sorted(having))
    return f"\nFurther attributes: {'; '.join(lines)}.\n" if having else ""


def files_sections() -> str:
    """A section on each kind of file."""
    sections = []
    for name, kind in FILES.items():
        by = f"{place_of(name)}; written by `{kind.step}`"
        body = f"{by}.\n\n{datasets_table(name)}{further_attributes(name)}"
        sections.append(f"\n### `{name}`: {kind.title}\n\n{body}")
    return "".join(sections) + "\n"


def flags_table(cls) -> str:
    """The bits of a class of flags."""
    return table(("bit", "name", "set when"), ((f.value, f"`{f.name}`", f.text) for f in cls))


def step_number(script) -> int:
    """The number of a step, from the first line of its script."""
    first = ast.get_docstring(ast.parse((ROOT / script).read_text())).splitlines()[0]
    return int(re.match(r"Step (\d+)", first)[1])


def steps_table() -> str:
    """The ten steps: command, what it makes, what it costs for a million stars and for the sky."""
    made = {}
    for name, kind in FILES.items():
        made.setdefault(kind.step, f"{kind.title}: {place_of(name)}")
    made[FILES["validation"].step] = MODEL
    rows = [LABELS_STEP]
    hours, terabytes = 0.0, 0.0
    for script, what in made.items():
        rate, number = rate_of(script), step_number(script)
        minutes = (rate.start_s + rate.star_us) / 60 if number == TRAINING else rate.star_us / 60
        size = "" if number == TRAINING else f"{rate.star_kb:.2g}"
        costs = f"{minutes:.2g}", size, f"{rate.memory_gb:.2g}"
        rows.append((number, f"`{COSTS[script].command}`", what, *costs))
        if script in KINDS_STEPS:
            hours += DR3_STARS * rate.star_us / 36e8
            terabytes += DR3_STARS * rate.star_kb / 1e9
    total = ("", "**in all, the sky's 219 million**", "", f"**{hours:.0f} hours**",
             f"**{terabytes:.1f} TB**", "")  # fmt: skip
    heads = ("#", "`python ...`", "makes", "minutes", "GB", "memory (GB)")
    return table(heads, [*sorted(rows), total])


def costs_table() -> str:
    """What each step costs."""
    rows = [
        (step_number(script), f"`{script}`", cost.size, cost.time, cost.memory)
        for script, cost in COSTS.items()
    ]
    return table(("#", "script", "size of the output", "time, one core", "memory"), sorted(rows))


def whole_sky_table() -> str:
    """What the whole sky costs, step by step, and in all."""
    costs = {step: cost for step, cost in WHOLE_SKY.items() if isinstance(cost, dict)}
    formats = {
        "start_s": ".1f",
        "star_us": ".0f",
        "star_mflop": ".0f",
        "memory_gb": ".1f",
        "core_hours": ".1f",
        "terabytes": ".2f",
    }
    rows = [(step, *(f"{cost[k]:{f}}" for k, f in formats.items())) for step, cost in costs.items()]
    of_all = " + ".join(step.split()[0] for step, cost in costs.items() if cost["everywhere"])
    sums = {k: sum(cost[k] for cost in costs.values() if cost["everywhere"]) for k in formats}
    rows.append(
        (f"in all, {of_all}", "", f"{sums['star_us']:.0f}", f"{sums['star_mflop']:.0f}")
        + ("", f"**{sums['core_hours']:.0f}**", f"{sums['terabytes']:.1f}")
    )
    titles = ("start (s)", "us a star", "Mflop of sgemm a star", "memory (GB)")
    return table(("step", *titles, "core-hours, whole sky", "TB, whole sky"), rows)


def cluster_table() -> str:
    """The jobs of the whole sky, for DR3."""
    args = plan.parse_args(["--parts", str(PARTS)])
    shards = np.bincount(np.arange(DR3_SHARDS) % PARTS)
    sky = plan.Sky(PARTS, shards, DR3_STARS / DR3_SHARDS * shards)
    rows = []
    for k, step in plan.STEPS.items():
        each = plan.seconds(step, args, sky)
        named = {"the same part of ": step.after, "all of ": step.barrier}
        waits = [what + ", ".join(map(str, others)) for what, others in named.items() if others]
        jobs = "1" if step.whole else f"{PARTS}"
        jobs += f", {args.archive_tasks} at a time" if step.asks else ""
        times = f"{each.max() / 60:.0f}", plan.minutes(each.max(), args.slack)
        memory = plan.memory_gb(step, args)
        rows.append((k, "; ".join(waits) or "nothing", jobs, *times, memory, step.cores))
    heads = ("step", "waits for", "jobs", "min a job", "limit (min)", "memory (GB)")
    return table((*heads, "cores"), rows)


def more_stars_table() -> str:
    """What the steps cost, for several numbers of stars: all but the training, which is capped."""
    rows, sums = [], np.zeros(2 * len(SKIES))
    for script in COSTS:
        rate, number = rate_of(script), step_number(script)
        if number in (7, 8):
            continue
        amounts = [x for n in SKIES.values() for x in (n * rate.star_us / 36e8, n * rate.star_kb)]
        sums += amounts
        rows.append((number, f"`{script}`", f"{rate.star_us:.0f}", f"{rate.star_kb:.2g}",
                     f"{rate.memory_gb:.2g}", *_hours_and_terabytes(amounts)))  # fmt: skip
    total = ("", "in all", "", "", "", *(f"**{cell}**" for cell in _hours_and_terabytes(sums)))
    heads = [f"{what}, {name}" for name in SKIES for what in ("core-hours", "TB")]
    return table(("step", "script", "us a star", "kB a star", "GB a process", *heads),
                 [*sorted(rows), total])  # fmt: skip


def _hours_and_terabytes(amounts):
    """Cells of (core-hours, kB) one after the other."""
    pairs = zip(amounts[::2], amounts[1::2], strict=True)
    return [cell for hours, kb in pairs for cell in (f"{hours:.1f}", f"{kb / 1e9:.2g}")]


def folders_table() -> str:
    """The folders of the data directory."""
    rows = (
        (f"`{kind.folder}/`", f"`{kind.prefix}_{{fid}}.h5`", kind.title, f"`{kind.step}`")
        for kind in KINDS.values()
    )
    return table(("folder", "files", "what is in them", "filled by"), rows)


def parameters_table() -> str:
    """The parameters of a star, in order."""
    rows = (
        (i, f"`{p.name}`", p.text or p.title, p.unit, p.ucd and f"`{p.ucd}`")
        for i, p in enumerate(DEFAULT_LABELS.parameters)
    )
    return table(("place", "name", "meaning", "unit", "UCD"), rows)


def bands_table() -> str:
    """The photometric bands, in the order of the flux vector."""
    rows = (
        (b.name, SURVEYS[b.survey].title, f"{b.wavelength:g}", f"{b.vega_to_ab:g}") for b in BANDS
    )
    return table(("band", "survey", "wavelength (nm)", "m_AB − m (mag)"), rows)


def make_table(name) -> str:
    """The table of a name. Raises NoTableError where there is none."""
    if name in FILES:
        return datasets_table(name)
    if name in FLAGS:
        return flags_table(FLAGS[name])
    others = {
        "files": files_sections,
        "steps": steps_table,
        "costs": costs_table,
        "whole_sky": whole_sky_table,
        "cluster": cluster_table,
        "more_stars": more_stars_table,
        "folders": folders_table,
        "parameters": parameters_table,
        "bands": bands_table,
    }
    if name not in others:
        raise NoTableError(f"no table {name}; there are {', '.join([*others, *FLAGS, *FILES])}")
    return others[name]()


# ---- pages -----------------------------------------------------------------------------------


def filled(text) -> str:
    """A page with its tables as they are to be. Raises NoTableError for a marker without an end."""
    if len(MARKED.findall(text)) != len(OPENED.findall(text)):
        raise NoTableError("a line <!-- table: NAME --> has no line <!-- end --> after it")
    return MARKED.sub(lambda match: match[1] + make_table(match[2]) + match[3], text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    outdated = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        try:
            new = filled(text)
        except NoTableError as error:
            sys.stderr.write(f"{page}: {error}\n")
            return 2
        if new != text:
            outdated.append(page)
        if new != text and not args.check:
            (ROOT / page).write_text(new)
    sys.stdout.write(
        "".join(f"{page}: {'out of date' if args.check else 'written'}\n" for page in outdated)
    )
    return 1 if args.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
