#!/usr/bin/env python3
"""After step 8: the learned extinction curve as tables, for use outside of this project.

    python tools/export_extinction.py --model output_folder/ --out dust/

Reads OUTPUT_FOLDER/model.h5. Writes to the folder --out, each as .ecsv (units and words in it) and
as plain .csv:

  extinction_curve    a row a wavelength of the model: wavelength (nm), channel (xp, or a band), and
                      A(lambda) / E in mag for each xi of --xi, as A_xi_m1 of xi = -1
  extinction_by_xi    a row a xi from -3.5 to 3.5: R55, RV, AV (mag per E), E44_55 (mag per E)

and extinction_curve.png, the curve beside the law of Gordon et al. (2023, ApJ 950, 86: G23), where
`dust_extinction` is installed (requirements-dev.txt). What the columns are is in their words:
R(55) = A(550 nm) / [A(440 nm) - A(550 nm)], monochromatic, is Fitzpatrick et al.'s (2019, ApJ 886,
108), as is the relation that gives R(V) of it. Multiply AV and E44_55 by a star's E for its A(V)
and its E(44-55), which is near E(B-V): so E44_55 is the factor from our E to that. Prints both at
xi = 0. Takes some seconds.
Exit status: 0; 2 wrong usage, or no model.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from astropy.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import figures
from pipeline.errors import UsageError
from pipeline.extinction_law import DEFINITIONS, law_of_model
from pipeline.provenance import provenance
from pipeline.published_laws import published_laws
from pipeline.run import usage_exit
from pipeline.schema import MODEL_FILE
from pipeline.schema.labels import EXTINCTION
from pipeline.select import add_release_argument
from pipeline.whole_files import write_text

SCRIPT = "export_extinction"
XI = (-2.0, -1.0, 0.0, 1.0, 2.0)
XI_GRID = np.arange(-35, 36) / 10  # the range of the catalogue
NOTES = ("version", "time", "release")  # of the provenance
NOTE = (
    "G23: Gordon et al. 2023, ApJ 950, 86, at one wavelength a flux, whatever its width. A grey "
    "part of a curve is told\nfrom distance by the parallaxes alone; colour excesses have none."
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="output folder of train.py"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--xi", nargs="+", type=float, default=XI, help="of the curves (-2 -1 0 1 2)"
    )
    add_release_argument(parser)
    return parser.parse_args(argv)


def column_of(xi) -> str:
    """Name of the column of a curve: A_xi_m0.5 of xi = -0.5."""
    return f"A_xi_{xi:g}".replace("-", "m")


def curve_table(law, xi) -> Table:
    """A row a wavelength: A / E at each xi (k,)."""
    table = Table({"wavelength": law.wavelengths.round(3), "channel": law.names})
    table["wavelength"].info.unit = "nm"
    table["channel"].info.description = "xp, or the photometric band"
    for one, curve in zip(xi, law.a_per_e(xi), strict=True):
        table[column_of(one)] = curve.round(6)
        table[column_of(one)].info.description = f"A(lambda) / E in mag, at xi = {one:g}"
    return table


def ratio_table(law, xi) -> Table:
    """A row a xi (k,): the ratios, and factors of E."""
    columns = {
        "R55": law.r55(xi),
        "RV": law.rv(xi),
        "AV": law.av_per_e(xi),
        "E44_55": law.reddening_per_e(xi),
    }
    table = Table({"xi": xi})
    for name, values in columns.items():
        table[name] = values.round(6)
        per_e = "" if name.startswith("R") else ", for E = 1"
        table[name].info.description = DEFINITIONS[name] + per_e
    return table


def write_table(table, folder, name, notes):
    """A table as .ecsv and .csv, each whole or not at all."""
    table.meta |= notes
    for ending, form in ((".ecsv", "ascii.ecsv"), (".csv", "ascii.csv")):
        text = io.StringIO()
        table.write(text, format=form, **({"delimiter": ","} if ending == ".ecsv" else {}))
        write_text(folder / f"{name}{ending}", text.getvalue())


def draw(law, xi, path) -> str:
    """Draw the curve beside published ones; words on what came of it."""
    try:
        laws = published_laws(law.wavelengths, ("G23",))
    except UsageError as error:
        return f"{path.name} is not drawn ({error})"
    shown = np.unique([xi[0], 0.0, xi[-1]])
    figures.extinction_laws(
        path,
        law.wavelengths,
        shown,
        law.ln_r(shown),
        laws,
        ("G23", "R(V) = 3.1"),
        note=NOTE,
        n_xp=law.n_xp,
        words=[f", $R_V={ratio:.2f}$" for ratio in law.rv(shown)],
    )
    return f"{path}"


@usage_exit
def main(argv=None) -> int:
    args = parse_args(argv)
    args.xi = np.unique(args.xi) + 0.0  # no -0
    model_file = args.model / MODEL_FILE
    if not model_file.is_file():
        raise UsageError(f"{model_file}: no trained model there; give --model the folder of step 8")
    law = law_of_model(model_file, args.release)
    if not np.isfinite(law.r55(0.0)):
        raise UsageError(f"{model_file}: its spectra do not hold 440 and 550 nm, as R(55) needs")
    made_by = provenance(SCRIPT, argv, [model_file], args.release)
    notes = {name: made_by[name] for name in NOTES} | {"E": f"in {EXTINCTION.unit}"}
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(curve_table(law, args.xi), args.out, "extinction_curve", notes)
    write_table(ratio_table(law, XI_GRID), args.out, "extinction_by_xi", notes)
    drawn = draw(law, args.xi, args.out / "extinction_curve.png")
    for xi in args.xi:
        sys.stdout.write(
            f"xi = {xi:+.1f}: R(55) = {law.r55(xi):.3f}, R(V) = {law.rv(xi):.3f}, A(V) = "
            f"{law.av_per_e(xi):.3f} E mag, E(44-55) = {law.reddening_per_e(xi):.3f} E mag\n"
        )
    sys.stdout.write(f"{args.out}: extinction_curve, extinction_by_xi (.ecsv, .csv)\n{drawn}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
