<resource schema="gaiadr3">
  <meta name="title">Stand-in for the Gaia archive's schema gaiadr3</meta>
  <meta name="creationDate">2026-01-01T00:00:00Z</meta>
  <meta name="description">The columns that the queries of the tests use.</meta>
  <meta name="subject">tests</meta>
  <meta name="creator.name">tests</meta>

  <table id="gaia_source" onDisk="True" adql="True" primary="source_id">
    <column name="source_id" type="bigint" ucd="" description="identifier" required="True"/>
    <LOOP>
      <csvItems>
name,type
ref_epoch,double precision
ra,double precision
dec,double precision
parallax,double precision
pmra,double precision
pmdec,double precision
ecl_lat,double precision
phot_g_mean_flux,double precision
phot_bp_mean_flux,double precision
phot_rp_mean_flux,double precision
ra_error,real
dec_error,real
parallax_error,real
pmra_error,real
pmdec_error,real
ruwe,real
astrometric_excess_noise,real
astrometric_sigma5d_max,real
nu_eff_used_in_astrometry,real
pseudocolour,real
radial_velocity,real
radial_velocity_error,real
rv_expected_sig_to_noise,real
rv_renormalised_gof,real
rv_chisq_pvalue,real
phot_g_mean_mag,real
phot_bp_mean_mag,real
phot_rp_mean_mag,real
phot_g_mean_flux_error,real
phot_bp_mean_flux_error,real
phot_rp_mean_flux_error,real
phot_bp_rp_excess_factor,real
has_xp_continuous,boolean
has_rvs,boolean
phot_variable_flag,text
      </csvItems>
      <events>
        <column name="\name" type="\type" ucd="" description="\name"/>
      </events>
    </LOOP>
    <LOOP>
      <csvItems>
name,type
random_index,bigint
astrometric_params_solved,smallint
visibility_periods_used,smallint
rv_nb_transits,smallint
phot_g_n_obs,smallint
phot_bp_n_obs,smallint
phot_rp_n_obs,smallint
non_single_star,smallint
      </csvItems>
      <events>
        <column name="\name" type="\type" ucd="" description="\name">
          <values nullLiteral="-9999"/>
        </column>
      </events>
    </LOOP>
  </table>

  <table id="tmass_psc_xsc_best_neighbour" onDisk="True" adql="True" primary="source_id">
    <column name="source_id" type="bigint" ucd="" description="Gaia's" required="True"/>
    <column name="clean_tmass_psc_xsc_oid" type="integer" ucd="" description="key"
      required="True"/>
    <column name="original_ext_source_id" type="text" ucd="" description="of 2MASS"/>
    <column name="angular_distance" type="real" unit="arcsec" ucd="" description="separation"/>
  </table>

  <table id="tmass_psc_xsc_join" onDisk="True" adql="True">
    <column name="clean_tmass_psc_xsc_oid" type="integer" ucd="" description="key"
      required="True"/>
    <column name="original_psc_source_id" type="text" ucd="" description="of point sources"/>
    <column name="original_xsc_source_id" type="text" ucd="" description="of extended sources"/>
  </table>

  <LOOP listItems="gaia_source tmass_psc_xsc_best_neighbour tmass_psc_xsc_join">
    <events>
      <data id="import_\item">
        <sources>data/\item.csv</sources>
        <csvGrammar/>
        <make table="\item"><rowmaker idmaps="*"/></make>
      </data>
    </events>
  </LOOP>
</resource>
