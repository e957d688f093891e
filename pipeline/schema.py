"""What the pipeline's files hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardKind:
    """Where the shards of one kind live.

    foreign: not written by this project. optional: its folder may be left out with --without.
    """

    folder: str
    prefix: str
    id_column: str = "gdr3_source_id"
    foreign: bool = False
    optional: bool = False


KINDS = {
    "xp": ShardKind("xp_continuous_mean_spectrum", "XpContinuousMeanSpectrum", "source_id", True),
    "metadata": ShardKind("xp_metadata", "xp_metadata", "source_id"),
    "tmass": ShardKind("xp_tmass_match", "xp_tmass_match", optional=True),
    "unwise": ShardKind("xp_unwise_match", "xp_unwise_match", optional=True),
    "reddening": ShardKind("xp_dustmap_match", "xp_reddening_match", optional=True),
    "opt_input": ShardKind("xp_opt_input_files", "xp_opt_input"),
    "opt_output": ShardKind("xp_opt_output_files", "xp_opt_output"),
}
