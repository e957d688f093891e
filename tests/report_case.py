"""A made-up model's folder and data directory for the page, and the page taken apart."""

import json

import numpy as np
from bs4 import BeautifulSoup
from export_case import covariances, values_of, write_catalogue
from PIL import Image

from fitting.report.pictures import GOODNESS, TRAINING
from pipeline.provenance import identity
from pipeline.schema import DEFAULT_LABELS, FILES, Layout, load_release, resolved
from pipeline.write import ShardWriter, write_arrays
from tools import report

RELEASE = load_release()


def validation_stars(n, labels=DEFAULT_LABELS, seed=0, pull=1.0):
    """Columns of validation.h5 of n stars, whose pulls are so wide; one in ten is flagged CHI2, one
    in seven has no parameters."""
    layout, rng = Layout(RELEASE, labels), np.random.default_rng(seed)
    table = {k: values_of(d, n, rng) for k, d in resolved("validation", layout).items()}
    table["gdr3_source_id"] = np.arange(n) + 10
    k, size = len(labels), len(labels.parameters)
    cov = covariances(n, size, rng)
    err = np.sqrt(np.einsum("nii->ni", cov))
    truth = np.column_stack([rng.uniform(4, 6.5, n), *rng.normal(2, 1.5, (k - 1, n))])
    label_err = np.full((n, k), 0.01)
    est = rng.normal(1, 0.3, (n, size))
    est[:, :k] = truth + pull * np.hypot(err[:, :k], label_err) * rng.normal(size=(n, k))
    for kind in ("stellar", "model"):
        table |= {f"{kind}_params_est": est.copy(), f"{kind}_params_err": err.copy()}
    table["stellar_params_est"][::7] = np.nan
    table |= {"stellar_type": truth, "stellar_type_err": label_err}
    for label in labels:
        table[f"{label.name}_confidence"] = rng.uniform(0, 1, n)
    table["quality_flags"] = np.where(np.arange(n) % 10 == 3, 8, 0).astype("u4")
    return table


def write_validation(folder, table, labels=DEFAULT_LABELS, **attrs):
    """validation.h5 of these columns."""
    n, path = len(table["gdr3_source_id"]), folder / "validation.h5"
    made_by = {"script": "train", "release": RELEASE.name} | attrs
    made_by |= {"format": FILES["validation"].format}
    with ShardWriter(path, n, "gdr3_source_id", made_by) as writer:
        writer.create_columns(resolved("validation", Layout(RELEASE, labels)))
        writer.write_table(table)
    return path


def write_model(folder, *, scale="", pictures=True, history=None, labels=DEFAULT_LABELS, **attrs):
    """The folder of a made-up model, without validation.h5; its identity."""
    folder.mkdir(parents=True, exist_ok=True)
    made_by = {"script": "train", "release": RELEASE.name, "version": "v1", "time": "2026-01-01"}
    made_by |= {"command_line": "train -i training_data.h5 -o model"} | attrs
    arrays = {"labels": np.array(labels.to_json()), "parallax_scale": np.array(scale or " ")}
    arrays["parallax_scale"] = np.array(scale.encode() or b"")
    write_arrays(folder / "model.h5", arrays, made_by)
    for name in (*GOODNESS, *TRAINING) if pictures else ():
        Image.new("RGB", (90, 60), (20, 90, 160)).save(folder / f"{name}.png")
    history = [{"stage": "first", "stars": 500, "rejected": 3}] if history is None else history
    (folder / "history.json").write_text(json.dumps(history))
    return identity(folder / "model.h5")


def write_all(folder, n=600, **how):
    """(data directory, model's folder, columns of the catalogue, of the validation stars)."""
    data_dir, model = folder / "data", folder / "model"
    ours = write_model(model, **how)
    table = validation_stars(500)
    write_validation(model, table)
    return data_dir, model, write_catalogue(data_dir, n, model=ours), table


# ---- the page --------------------------------------------------------------------------------


def page_of(path, data_dir=None, model=None, *more):
    """The page that tools/report.py makes, as text."""
    words = ["--out", path, *more]
    words += ["--data-dir", data_dir] if data_dir is not None else []
    words += ["--model", model] if model is not None else []
    assert report.main([str(word) for word in words]) == 0
    return path.read_text()


def soup_of(text):
    return BeautifulSoup(text, "html.parser")


def text_of(node) -> str:
    return " ".join(node.get_text(" ").split())


def table_of(soup, caption):
    """{head of a row: {head of a column: text}} of a table."""
    table = next(t for t in soup.find_all("table") if text_of(t.caption) == caption)
    heads = [text_of(th) for th in table.thead.find_all("th")]
    rows = [tr for tr in table.tbody.find_all("tr") if "group" not in (tr.get("class") or [])]
    cells = [[text_of(c) for c in row.find_all(["th", "td"])] for row in rows]
    return [dict(zip(heads, row, strict=True)) for row in cells]


def worries_of(soup) -> list:
    """What is said to worry about."""
    return [text_of(one) for one in soup.select(".worries li")]


def number_in(text) -> int:
    return int(text.replace(",", ""))
