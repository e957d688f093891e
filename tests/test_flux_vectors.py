"""The flux vector as a whole, and the columns of stars that steps 7 and 9 share."""

import numpy as np
import pytest
import xp_oracle
from xp_case import (
    BASIS,
    RELEASE,
    assert_same,
    demo_stars,
    good_surveys,
    good_tmass,
    no_neighbours,
    random_stars,
    rows_of,
    vectors,
)

import xp_utils
from pipeline.photometry import photometry_flux
from pipeline.schema import Layout, resolved
from pipeline.schema.flags import InputFlag

N_XP = len(BASIS.wavelengths)


def test_flux_vector_is_sampled_flux_then_photometry():
    xp = demo_stars(10)
    result = vectors(xp)
    sample = xp_utils.sample_xp(xp, BASIS)
    cov = xp_utils.add_flux_floors(sample)
    band_flux, band_err = photometry_flux(good_surveys(10), no_neighbours(10))
    np.testing.assert_allclose(result.flux, np.hstack([sample.flux, band_flux]), rtol=1e-6)
    xp_err = np.sqrt(np.einsum("nii->ni", cov))
    np.testing.assert_allclose(result.flux_err, np.hstack([xp_err, band_err]), rtol=5e-5)
    assert result.flux.dtype == result.flux_err.dtype == np.float32
    assert np.isfinite(result.flux_err).all()


def test_flux_vector_equals_the_formulae_star_by_star():
    xp = random_stars(6)
    ids = xp["source_id"]
    own = {"gdr3_source_id": ids}
    tables = {
        "xp": xp,
        "metadata": {"source_id": ids, **no_neighbours(6)},
        **{kind: own | table for kind, table in good_surveys(6).items()},
    }
    result = vectors(xp)
    for star in range(6):
        flux, err = xp_oracle.flux_vector(tables, star, BASIS, "gdr3_source_id")
        np.testing.assert_allclose(result.flux[star], flux, rtol=1e-6)
        np.testing.assert_allclose(result.flux_err[star], err, rtol=1e-6)


def test_size_of_the_chunks_does_not_matter(monkeypatch):
    xp = random_stars(50)
    xp["bp_n_parameters"][7] = 0
    whole = vectors(xp)
    monkeypatch.setattr(xp_utils, "CHUNK_STARS", 8)
    result = vectors(xp)
    np.testing.assert_allclose(result.flux, whole.flux, rtol=1e-6)
    np.testing.assert_allclose(result.flux_err, whole.flux_err, rtol=1e-6)
    np.testing.assert_array_equal(result.input_flags, whole.input_flags)


def test_star_without_any_spectrum_keeps_its_photometry():
    xp = random_stars(2)
    for band in ("bp", "rp"):
        xp[f"{band}_coefficients"][1] = np.nan
        xp[f"{band}_n_parameters"][1] = 0
    result = vectors(xp)
    assert result.input_flags[1] == InputFlag.BP_MISSING | InputFlag.RP_MISSING
    assert np.isfinite(result.flux_err).sum(axis=1).tolist() == [N_XP + 5, 5]


def test_missing_surveys_are_flagged_and_have_no_weight():
    xp = random_stars(2)
    for tables in ({}, {"tmass": None, "unwise": None}):
        result = xp_utils.flux_vectors(xp, tables, no_neighbours(2), BASIS)
        assert (result.input_flags == InputFlag.NO_2MASS | InputFlag.NO_WISE).all()
        assert np.isinf(result.flux_err[:, N_XP:]).all()
        assert not result.flux[:, N_XP:].any()
        assert np.isfinite(result.flux_err[:, :N_XP]).all()


def test_no_stars_give_empty_arrays():
    result = vectors(rows_of(random_stars(2), slice(0, 0)))
    assert result.flux.shape == result.flux_err.shape == (0, N_XP + 5)


def test_tables_of_other_lengths_are_named():
    tables = {"tmass": {**good_tmass(2), "j_m": np.ones(3)}}
    with pytest.raises(ValueError, match="tmass j_m: 3 rows, expected 2"):
        xp_utils.flux_vectors(random_stars(2), tables, no_neighbours(2), BASIS)


def test_the_same_stars_give_the_same_vectors_again():
    xp = random_stars(20)
    assert_same(vectors(xp), vectors(xp))


# --- stars ----------------------------------------------------------------------------------
def aligned(n, **metadata):
    """Tables of n stars as `aligned_chunks` gives them."""
    columns = xp_utils.star_columns(RELEASE)["metadata"]
    table = {name: np.linspace(1, 2, n) for kind in columns for name in kind}
    table |= {"norm_dg": np.full(n, np.nan), "matched": np.ones(n, bool)} | metadata
    return {"xp": random_stars(n), "metadata": table, **good_surveys(n)}


def test_columns_of_a_star_are_those_of_the_schema_with_their_types():
    table = xp_utils.star_table(aligned(3), BASIS)
    declared = resolved("opt_input", Layout(RELEASE))
    assert table.keys() == declared.keys()
    for name, data in declared.items():
        assert table[name].shape == (3, *data.shape), name
        assert np.can_cast(table[name].dtype, data.dtype, "same_kind"), name


def test_a_parallax_counts_only_with_a_positive_error():
    plx = np.array([1.0, np.nan, 1.0, 1.0, -0.4])
    err = np.array([0.1, 0.1, np.nan, 0.0, 0.1])
    table = xp_utils.star_table(aligned(5, parallax=plx, parallax_error=err), BASIS)
    good = [True, False, False, False, True]
    assert np.isfinite(table["plx"]).tolist() == good
    assert np.isfinite(table["plx_err"]).tolist() == good
    assert ((table["input_flags"] & InputFlag.NO_PARALLAX) == 0).tolist() == good
    assert table["plx"][4] == np.float32(-0.4)


def test_a_star_without_metadata_is_flagged():
    matched = np.array([True, False])
    flags = xp_utils.star_table(aligned(2, matched=matched), BASIS)["input_flags"]
    assert ((flags & InputFlag.NO_METADATA) > 0).tolist() == [False, True]


def test_columns_that_the_metadata_lack_are_nan_and_no_neighbour():
    tables = aligned(4)
    whole = xp_utils.star_table(tables, BASIS)
    for name in ("norm_dg", "ruwe"):
        del tables["metadata"][name]
    table = xp_utils.star_table(tables, BASIS)
    assert np.isnan(table["norm_dg"]).all()
    assert np.isnan(table["ruwe"]).all()
    np.testing.assert_array_equal(table["flux_err"], whole["flux_err"])


def test_columns_required_of_the_metadata_are_those_the_archive_must_have():
    required, optional = xp_utils.star_columns(RELEASE)["metadata"]
    assert set(required) == {"parallax", "parallax_error", "ra", "dec", "fidelity_v2"}
    assert "norm_dg" in optional


def test_flags_are_distinct_powers_of_two_in_sixteen_bits():
    values = [flag.value for flag in InputFlag]
    assert len(set(values)) == len(values)
    assert set(values) <= {2**k for k in range(16)}
