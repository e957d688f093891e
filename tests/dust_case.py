"""A law of extinction that is a power law of the wavelength, for tests; no TensorFlow."""

import numpy as np

from pipeline.extinction_law import MAG, ExtinctionLaw
from pipeline.schema import Layout

POWER = 1.3


def power_law(slope=0.0):
    """A / E = (lambda / 550 nm)^-1.3 mag, with a slope in xi where it is not 0."""
    layout = Layout()
    x = np.log(layout.wavelengths / 550.0)
    names = np.array(layout.channels)
    return ExtinctionLaw(layout.wavelengths, -POWER * x - np.log(MAG), slope * (1 + x), names)
