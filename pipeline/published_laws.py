"""Published extinction laws, by the package `dust_extinction` (requirements-dev.txt)."""

import numpy as np

from pipeline.errors import UsageError
from pipeline.figures.dust import NORM_NM

R_V = (2.5, 3.1, 4.0)


def published_laws(wavelengths, names=("G23", "F99"), r_v=R_V):
    """{(law, "R(V) = ..."): A(lambda) / A(550 nm) (n_wl,)} at wavelengths in nm; NaN where a law
    says nothing. names: of classes of `dust_extinction.parameter_averages`. UsageError where the
    package is not installed."""
    try:
        from dust_extinction import parameter_averages
    except ImportError as error:
        raise UsageError(f"{error}: pip install -r requirements-dev.txt") from error

    return {
        (name, f"R(V) = {ratio:g}"): law_at(
            getattr(parameter_averages, name)(Rv=ratio), wavelengths
        )
        for name in names
        for ratio in r_v
    }


def law_at(law, wavelengths):
    """A law of `dust_extinction` (n_wl,) at wavelengths in nm, 1 at 550 nm."""
    from astropy import units

    inverse_um = 1e3 / np.asarray(wavelengths, "f8")
    low, high = law.x_range
    known = (inverse_um >= low) & (inverse_um <= high)
    out = np.full(len(inverse_um), np.nan)
    out[known] = law(inverse_um[known] / units.um) / law(1e3 / NORM_NM / units.um)
    return out
