"""What goes with a data set for people: what it is, its columns, whom to thank and to cite."""

import csv
import io

from pipeline.whole_files import write_text

COLUMN_HEADS = ("name", "type", "unit", "ucd", "description")
LICENCE = """\
# Licence and attribution

These numbers were inferred from data of others, whose terms hold for them:

- **Gaia** (spectra, photometry, parallaxes, positions): (c) ESA/Gaia/DPAC, licence CC BY-SA 3.0
  IGO (https://creativecommons.org/licenses/by-sa/3.0/igo/). Acknowledge: "This work has made use of
  data from the European Space Agency (ESA) mission Gaia (https://www.cosmos.esa.int/gaia),
  processed by the Gaia Data Processing and Analysis Consortium (DPAC,
  https://www.cosmos.esa.int/web/gaia/dpac/consortium). Funding for the DPAC has been provided by
  national institutions, in particular the institutions participating in the Gaia Multilateral
  Agreement." Cite Gaia Collaboration (Prusti et al.) 2016, A&A 595, A1; (Vallenari et al.) 2023,
  A&A 674, A1; De Angeli et al. 2023, A&A 674, A2 (BP/RP spectra).
- **2MASS** (J, H, Ks, where they were used): a joint project of the University of Massachusetts and
  the Infrared Processing and Analysis Center/California Institute of Technology, funded by NASA and
  the National Science Foundation. Cite Skrutskie et al. 2006, AJ 131, 1163.
- **unWISE** (W1, W2, where they were used): from the Wide-field Infrared Survey Explorer, a joint
  project of the University of California, Los Angeles, and the Jet Propulsion Laboratory/California
  Institute of Technology, funded by NASA. Cite Wright et al. 2010, AJ 140, 1868; Schlafly, Meisner
  & Green 2019, ApJS 240, 30.
- **The form of the model**: cite Zhang, Green & Rix 2023, MNRAS 524, 1855; Zhang & Green 2025,
  Science 387, 1209.
- **The labels** that the model was trained on (APOGEE, LAMOST, GALAH ...) and the dust maps have
  their own citations.
"""


def columns_table(columns) -> str:
    """CSV of what the columns are: rows (name, type, unit, UCD, words)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMN_HEADS)
    writer.writerows([word or "" for word in row] for row in columns)
    return text.getvalue()


def flat_rows(columns):
    """(name, type, unit, UCD, words) of each `FlatColumn`."""
    return [(c.name, c.dtype, c.unit, c.ucd, c.text) for c in columns]


def readme(data_set, n_rows, n_files) -> str:
    """What the data set is, and how to open it."""
    notes = data_set.notes
    opened = "\n".join(data_set.hints)
    return f"""\
# {data_set.title}

{n_rows:,} stars in {n_files} files, layout `{data_set.layout}`; selection: {notes["selection"]}.
Made by {notes["script"]} {notes["version"]} from {notes["shards"]} shards, {notes["time"]}.

- `columns.csv`: what each column is. Missing numbers are NaN (null in Parquet).
- `manifest.json`: rows, bytes and SHA-256 of each file, the model, versions, rows that the
  selection left out.
- `LICENCE.md`: whom to acknowledge and to cite.

```python
{opened}
```
"""


def write_words(folder, data_set, n_rows, n_files) -> list[str]:
    """Write README, licence and columns of a data set; their names."""
    texts = {
        "README.md": readme(data_set, n_rows, n_files),
        "columns.csv": columns_table(data_set.columns),
        "LICENCE.md": LICENCE,
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)
