"""Counts of a catalogue's stars in cells, added up chunk by chunk, and the figures made of them."""
