<resource schema="external">
  <meta name="title">Stand-in for the Gaia archive's schema external</meta>
  <meta name="creationDate">2026-01-01T00:00:00Z</meta>
  <meta name="description">The columns that the queries of the tests use.</meta>
  <meta name="subject">tests</meta>
  <meta name="creator.name">tests</meta>

  <table id="gaiaedr3_spurious" onDisk="True" adql="True" primary="source_id">
    <column name="source_id" type="bigint" ucd="" description="Gaia's" required="True"/>
    <LOOP listItems="fidelity_v2 norm_dg theta_arcsec_worst_source
        dist_nearest_neighbor_at_least_m2_brighter
        dist_nearest_neighbor_at_least_0_brighter
        dist_nearest_neighbor_at_least_2_brighter">
      <events>
        <column name="\item" type="real" ucd="" description="\item"/>
      </events>
    </LOOP>
  </table>

  <data id="import_gaiaedr3_spurious">
    <sources>data/gaiaedr3_spurious.csv</sources>
    <csvGrammar/>
    <make table="gaiaedr3_spurious"><rowmaker idmaps="*"/></make>
  </data>
</resource>
