"""The short form of `torture.py`: some kills, some damaged files."""

import torture


def test_nothing_is_lost_or_wrong_after_kills_and_damage():
    said = []
    assert torture.torture(kills=4, damages=60, seed=7, say=said.append) == []
    assert len(said) == 2
