"""Runs a script as `python SCRIPT OPTIONS...` does, for the tests of jobs on a cluster.

Step 10 is quick (`demo_model.quick`: nothing is compiled). Every shard that is written takes as
many seconds longer as the file says that the variable PACE_FILE names, where it does.
"""

import contextlib
import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def slow_down():
    """Have every file take longer to write, just before it is finished."""
    from pipeline.write import ShardWriter

    finish = ShardWriter._finish

    def paced(writer):
        with contextlib.suppress(OSError, ValueError):
            time.sleep(float(Path(os.environ["PACE_FILE"]).read_text()))
        finish(writer)

    ShardWriter._finish = paced


def main():
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    sys.argv = sys.argv[1:]
    if "PACE_FILE" in os.environ:
        slow_down()
    if Path(sys.argv[0]).name == "xp_opt_allsources.py":
        from demo_model import quick

        block = quick()
    else:
        block = contextlib.nullcontext()
    with block:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
