"""One self-contained HTML page on a training or a catalogue, or both."""

import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fitting.report import accounts as accounting
from fitting.report import facts as run_facts
from fitting.report import pictures, tables, worries
from fitting.report.census import DAMAGED, OUTPUT, take_census
from fitting.report.goodness import read_goodness
from fitting.report.words import count, plural
from pipeline.errors import ShardError
from pipeline.provenance import project_version
from pipeline.schema import DEFAULT_LABELS
from pipeline.select import list_fids
from pipeline.whole_files import write_bytes

HERE = Path(__file__).parent
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


@dataclass
class Findings:
    """All that a page is made of, as far as it is there; missing: {what: why not}, in a line."""

    data_dir: Path | None
    model: Path | None
    release: object
    accounts: object = None
    census: object = None
    facts: object = None
    goodness: object = None
    accounting: str = ""
    drawn: list = field(default_factory=list)
    note: str = ""
    missing: dict = field(default_factory=dict)

    @property
    def labels(self):
        """The `LabelSet` of the catalogue, of the model, or the usual one."""
        for one in (self.census, self.goodness, self.facts):
            if one is not None and one.labels is not None:
                return one.labels
        return DEFAULT_LABELS

    def checks(self) -> list:
        """All `Check`s that can be made, the gravest first."""
        out = []
        if self.accounts:
            out += worries.of_shards(self.accounts, self.census)
        if self.census:
            out += worries.of_run(self.census)
        if self.census and self.facts:
            out.append(worries.of_same_model(self.census, self.facts))
        if self.goodness:
            out += worries.of_goodness(self.goodness)
        if self.facts:
            out += worries.of_training(self.facts)
        if self.census:
            out += worries.of_flags(self.census)
        return out


def find(data_dir, model, release, training_data=None) -> Findings:
    """`Findings` of a data directory and the folder of a model, either of which may be None. What
    cannot be read is said in `missing`, and is no failure."""
    out = Findings(data_dir and Path(data_dir), model and Path(model), release)
    if out.model is not None:
        _find_model(out, training_data)
    if out.data_dir is not None:
        _find_catalogue(out)
    return out


def _find_model(out, training_data):
    try:
        out.facts = run_facts.read_model(out.model)
    except ShardError as error:
        out.missing["model"] = str(error)
        return
    try:
        out.goodness = read_goodness(out.model, out.release)
    except ShardError as error:
        out.missing["goodness"] = str(error)
    folders = [out.model, out.model.parent, *([out.data_dir.parent] if out.data_dir else [])]
    path = training_data or run_facts.find_training_set(out.facts, folders)
    out.accounting = run_facts.accounting_of(path) if path else ""


def _find_catalogue(out):
    fids = list_fids(out.data_dir, OUTPUT)
    out.accounts = accounting.take_account(out.data_dir, out.model)
    if not fids:
        out.missing["catalogue"] = f"{out.data_dir}: step 10 has not written any shard yet"
        return
    out.census, failed = take_census(out.data_dir, fids, out.release)
    if out.census is None:
        out.missing["catalogue"] = f"{out.data_dir}: no shard of step 10 can be read"
    else:
        out.drawn, out.note, damaged = pictures.draw_catalogue(
            out.data_dir, out.census.rows, out.release
        )
        failed |= {fid: (DAMAGED, reason) for fid, reason in damaged.items()}
    accounting.add_left(out.accounts, failed)


# ---- the page --------------------------------------------------------------------------------


def render(found, command) -> str:
    """The HTML of `Findings`; command: line that makes it again."""
    surroundings = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    surroundings.filters["count"] = count
    return surroundings.get_template("page.html.j2").render(_context(found, command))


def _printable(value):
    """Texts without control characters, which are no HTML."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return CONTROL.sub("\ufffd", value)
    return value


def _context(found, command) -> dict:
    alarming, fine = worries.first_worries(found.checks())
    goodness = pictures.pictures_of(found.model, pictures.GOODNESS) if found.goodness else []
    training = pictures.pictures_of(found.model, pictures.TRAINING) if found.facts else []
    pictures.within([*goodness, *found.drawn, *training])
    context = {
        "found": found,
        "title": _title(found),
        "css": Markup((HERE / "page.css").read_text()),  # ours, and no text of a user's
        "ran": _commands(found),
        "version": project_version(),
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "tiles": tables.tiles(found.accounts, found.census, found.goodness),
        "worries": alarming,
        "stages": tables.of_stages(found.facts.history)
        if found.facts and found.facts.history else None,
        "fine": tables.of_checks(fine) if fine else None,
        "n_checks": plural(len(alarming) + len(fine), "check"),
        "goodness_pictures": goodness,
        "training_pictures": training,
        "columns": [
            tables.of_parameters(found.labels), tables.of_columns(found.release, found.labels),
        ],
    }  # fmt: skip
    return context | _run(found) | _accounts(found)


def _commands(found) -> list:
    """What was run, the catalogue's commands first."""
    if found.census:
        return run_facts.said(found.census, "command_line")
    return [found.facts.attrs["command_line"]] if found.facts else []


def _title(found) -> str:
    if found.data_dir is None:
        return f"The model {found.model}"
    return f"The catalogue of {found.data_dir}"


def _run(found) -> dict:
    release = found.release.name
    model = run_facts.of_model(found.facts) if found.facts else []
    catalogue = found.census and run_facts.of_catalogue(found.census, release, found.data_dir)
    used = (found.facts and found.facts.identity) or (
        found.census and next(iter(found.census.models), "")
    )
    return {
        "model_facts": model,
        "catalogue_facts": catalogue or [],
        "model_id": run_facts.short_id(used or ""),
        "starter": bool(used) and run_facts.is_starter(used),
    }


def _accounts(found) -> dict:
    accounts, census, good = found.accounts, found.census, found.goodness
    shards, stars = [], []
    if accounts:
        shards.append(tables.of_steps(accounts))
        if accounts.left:
            shards.append(tables.of_left(accounts))
    if census:
        stars.append(tables.of_stars(accounts, census))
    if census or good:
        stars.append(tables.of_quality(found.labels, census, good))
    if census:
        stars.append(tables.of_inputs(census))
    scores = [tables.of_accuracy(good), tables.of_confidences(good)] if good else []
    return {"shard_tables": shards, "star_tables": stars, "score_tables": scores}


def command_of(path, data_dir, model, release) -> str:
    """The command that makes the page again."""
    words = ["python", "tools/report.py"]
    for option, value in (("--data-dir", data_dir), ("--model", model)):
        if value is not None:
            words += [option, str(value)]
    if release.name != "dr3":
        words += ["--release", release.name]
    return shlex.join([*words, "--out", str(path)])


def write_page(path, *, data_dir=None, model=None, release, training_data=None) -> Findings:
    """Write the page on a data directory, a model's folder, or both; what it was made of.

    ShardError where it cannot be written. All else that fails is said in the page.
    """
    found = find(data_dir, model, release, training_data)
    text = render(found, command_of(path, data_dir, model, release))
    write_bytes(Path(path), text.encode("utf-8", "replace"))  # of file names that are no text
    return found
