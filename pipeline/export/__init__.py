"""The catalogue as tables for people: flat columns of the output shards of step 10, selected,
sorted by source id and written in the formats that astronomers open."""
