"""The file of a trained model: what train.py writes and others read."""

from fitting.trained_model import TrainedModel
from pipeline.errors import ShardError
from pipeline.read import read_arrays
from pipeline.write import write_arrays


def save_model(path, trained, made_by, recipe):
    """Write a `TrainedModel`; made_by: provenance, recipe: as text."""
    write_arrays(path, trained.to_arrays(), made_by, recipe=recipe)


def load_model(path, release):
    """The `TrainedModel` of a file; ShardError where it is not whole, or of another release."""
    arrays, _ = read_arrays(path)
    if "theta_mean" in arrays and "labels" not in arrays:
        raise ShardError(
            f"{path}: of an older version of train.py, whose parameters were in another order; "
            "train it again (--overwrite)"
        )
    try:
        trained = TrainedModel.from_arrays(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{path}: not a model of train.py ({error}), or of another "
            "version of it; train it again (--overwrite)"
        ) from error
    if trained.stellar.release != release.name:
        raise ShardError(
            f"{path}: trained on {trained.stellar.release}, but {release.name} is in use: give "
            f"--release {trained.stellar.release}, or a model of {release.name}"
        )
    return trained
