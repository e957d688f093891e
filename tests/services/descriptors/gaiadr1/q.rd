<resource schema="gaiadr1">
  <meta name="title">Stand-in for the Gaia archive's schema gaiadr1</meta>
  <meta name="creationDate">2026-01-01T00:00:00Z</meta>
  <meta name="description">The columns that the queries of the tests use.</meta>
  <meta name="subject">tests</meta>
  <meta name="creator.name">tests</meta>

  <table id="tmass_original_valid" onDisk="True" adql="True" primary="designation">
    <LOOP>
      <csvItems>
name,type
designation,text
ra,double precision
dec,double precision
j_m,real
j_msigcom,real
h_m,real
h_msigcom,real
ks_m,real
ks_msigcom,real
ph_qual,text
      </csvItems>
      <events>
        <column name="\name" type="\type" ucd="" description="\name"/>
      </events>
    </LOOP>
    <column name="ext_key" type="integer" ucd="" description="of the extended sources">
      <values nullLiteral="-9999"/>
    </column>
  </table>

  <data id="import_tmass_original_valid">
    <sources>data/tmass_original_valid.csv</sources>
    <csvGrammar/>
    <make table="tmass_original_valid"><rowmaker idmaps="*"/></make>
  </data>
</resource>
