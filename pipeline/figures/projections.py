"""Projections of the sky that keep areas, north up, longitude increasing to the left: the whole of
it, or a patch."""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.sphere import unit_vectors

PATCH = 45.0  # degrees: stars within it about their centre are shown as a patch
_ANGLE = np.linspace(-np.pi / 2, np.pi / 2, 4001)
_SIN_LAT = np.clip((2 * _ANGLE + np.sin(2 * _ANGLE)) / np.pi, -1, 1)
NICE_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)  # degrees, of the grid of a patch


class Mollweide:
    """The whole sky about (0, 0), longitude increasing to the left; x within +-2, y within +-1."""

    def to_plane(self, lon, lat):
        """x, y of positions in degrees."""
        angle = np.interp(np.sin(np.deg2rad(lat)), _SIN_LAT, _ANGLE)
        away = (np.asarray(lon, "f8") + 180.0) % 360.0 - 180.0
        return -away / 90.0 * np.cos(angle), np.sin(angle)

    def to_sky(self, x, y):
        """Positions in degrees; NaN outside of the sky."""
        inside = x**2 / 4 + y**2 <= 1
        angle = np.arcsin(np.where(inside, y, 0.0))
        lat = np.rad2deg(np.arcsin(np.clip((2 * angle + np.sin(2 * angle)) / np.pi, -1, 1)))
        lon = -90.0 * np.where(inside, x, 0.0) / np.maximum(np.cos(angle), 1e-9)
        return np.where(inside, lon, np.nan), np.where(inside, lat, np.nan)

    frame = (-2.02, 2.02, -1.01, 1.01)

    def meridians(self):
        """[(lon (n,), lat (n,))] of the lines of the grid."""
        line = np.linspace(-90, 90, 181)
        lines = [(np.full(181, lon), line) for lon in (-179.999, *range(-120, 121, 60), 179.999)]
        across = np.linspace(-179.999, 179.999, 361)
        return lines + [(across, np.full(361, lat)) for lat in (-60, -30, 0, 30, 60)]

    def words(self):
        """[(x, y, text, alignment)] along the grid."""
        out = []
        for lon in (120, 60, 0, -60, -120):
            x, y = self.to_plane(lon, 0.0)
            out.append((x, y - 0.02, f"{lon % 360}°", "center", "top"))
        for lat in (-60, -30, 30, 60):
            x, y = self.to_plane(180.0, lat)
            text = f"{lat}°".replace("-", "−")
            out.append((-abs(x) - 0.03, y, text, "right", "center"))
        return out


@dataclass(frozen=True)
class Patch:
    """A part of the sky of a radius about a centre (degrees), areas kept, north up, longitude
    increasing to the left; x, y in degrees."""

    lon: float
    lat: float
    radius: float

    def _axes(self):
        centre = unit_vectors(self.lon, self.lat)
        lon = np.deg2rad(self.lon)
        east = np.array([-np.sin(lon), np.cos(lon), 0.0])
        return east, np.cross(centre, east), centre

    def to_plane(self, lon, lat):
        """x, y of positions in degrees."""
        east, north, centre = self._axes()
        place = unit_vectors(lon, lat)
        factor = np.sqrt(2 / np.maximum(1 + place @ centre, 1e-9))
        x, y = -factor * (place @ east), factor * (place @ north)
        return np.rad2deg(x), np.rad2deg(y)

    def to_sky(self, x, y):
        """Positions in degrees; NaN outside of the sky."""
        x, y = np.deg2rad(x), np.deg2rad(y)
        rho2 = x**2 + y**2
        inside = rho2 <= 4
        rho2 = np.where(inside, rho2, 0.0)
        factor = np.sqrt(1 - rho2 / 4)[..., None]
        east, north, centre = self._axes()
        place = (1 - rho2 / 2)[..., None] * centre + factor * (
            -x[..., None] * east + y[..., None] * north
        )
        lon = np.rad2deg(np.arctan2(place[..., 1], place[..., 0]))
        lat = np.rad2deg(np.arcsin(np.clip(place[..., 2], -1, 1)))
        return np.where(inside, lon, np.nan), np.where(inside, lat, np.nan)

    @property
    def frame(self):
        return -self.radius, self.radius, -self.radius, self.radius

    def _ticks(self):
        """Longitudes and latitudes (degrees) of the grid."""
        lats = _multiples(self.lat, self.radius, NICE_STEPS)
        lats = lats[np.abs(lats) <= 90]
        narrow = max(np.cos(np.deg2rad(min(abs(self.lat), 89.0))), 0.02)
        reach = min(self.radius / narrow, 180.0)
        return _multiples(self.lon, reach, (*NICE_STEPS, 45, 60, 90)), lats, reach

    def meridians(self):
        """[(lon (n,), lat (n,))] of the lines of the grid."""
        lons, lats, reach = self._ticks()
        low, high = np.clip([self.lat - 1.5 * self.radius, self.lat + 1.5 * self.radius], -90, 90)
        lines = [(np.full(91, lon), np.linspace(low, high, 91)) for lon in lons]
        across = self.lon + np.linspace(-1.5, 1.5, 181) * reach
        return lines + [(across, np.full(181, lat)) for lat in lats]

    def words(self):
        """[(x, y, text, alignments)] below and left of the frame, where the grid meets it."""
        lons, lats, reach = self._ticks()
        out, edge = [], self.radius
        for lon in lons:
            lat = np.linspace(max(self.lat - 2 * edge, -90), min(self.lat + 2 * edge, 90), 2001)
            x, y = self.to_plane(np.full(2001, lon), lat)
            k = np.argmin(np.abs(y + edge))
            if abs(x[k]) <= edge and abs(y[k] + edge) < 0.02 * edge:
                out.append((x[k], -1.03 * edge, f"{_plain(lon % 360)}°", "center", "top"))
        for lat in lats:
            lon = self.lon + np.linspace(0, 1.6, 2001) * reach
            x, y = self.to_plane(lon, np.full(2001, lat))
            k = np.argmin(np.abs(x + edge))
            if abs(y[k]) <= edge and abs(x[k] + edge) < 0.02 * edge:
                out.append((-1.03 * edge, y[k], f"{_plain(lat)}°", "right", "center"))
        return out


def _multiples(centre, reach, steps):
    """Multiples of one of the steps within reach of the centre: 2 to 5 of them, or so."""
    step = next((s for s in steps if 2 * reach / s <= 5), steps[-1])
    return step * np.arange(np.ceil((centre - reach) / step), (centre + reach) / step + 1e-9)


def _plain(value):
    return f"{round(float(value), 4) + 0.0:g}".replace("-", "−")


def projection_of(lon, lat):
    """The `Patch` that holds positions (n,) in degrees where they are near each other, else
    `Mollweide`."""
    places = unit_vectors(lon, lat)
    if not len(places):
        return Mollweide()
    centre = places.mean(0)
    length = np.linalg.norm(centre)
    if length < 0.1:
        return Mollweide()
    centre = centre / length
    away = np.rad2deg(np.arccos(np.clip(places @ centre, -1, 1)))
    radius = float(away.max())
    if radius > PATCH:
        return Mollweide()
    lon, lat = _degrees(centre)
    around = Patch(float(lon), float(lat), radius)
    reach = np.abs(around.to_plane(*_degrees(places))).max()
    return replace(around, radius=max(1.06 * float(reach), 0.02))


def _degrees(places):
    """Longitudes and latitudes (n,) of unit vectors (n, 3)."""
    x, y, z = places.T
    return np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(np.clip(z, -1, 1)))
