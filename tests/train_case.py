"""Training sets as files, and what step 8 says when it refuses."""

from pipeline.schema import DEFAULT_LABELS, FILES, Layout
from pipeline.write import ShardWriter

WAVELENGTHS = Layout().wavelengths
SCRIPT = {"script": "compile_training_data", "release": "dr3", "xp_basis": "a basis"}


def write_training_data(path, table, labels=DEFAULT_LABELS, wavelengths=WAVELENGTHS, **attrs):
    """A training set of these columns, whatever they are; labels, wavelengths None: not said."""
    made_by = SCRIPT | {"format": FILES["training"].format} | attrs
    n = len(table["gdr3_source_id"])
    with ShardWriter(path, n, "gdr3_source_id", made_by) as writer:
        writer.write_table(table)
        if wavelengths is not None and "flux" in table:
            writer.set_attributes("flux", sample_wavelengths=wavelengths)
        if labels is not None and "stellar_type" in table:
            writer.set_attributes("stellar_type", labels=labels.to_json())
    return path


def assert_refused(capsys, status, *words):
    """The one line of a refusal, which holds the words."""
    message = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for word in words:
        assert word in message
