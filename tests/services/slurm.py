"""The real Slurm of tests/services/slurm.sh, and the jobs of cluster/submit_all.sh there."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CANNOT = 77  # exit status of slurm.sh: not on this machine
PATIENCE = 600  # seconds; the machine may be busy


class CannotServeError(Exception):
    """Slurm cannot be installed on this machine: the reason."""


def _slurm(*words):
    return subprocess.run(
        [HERE / "slurm.sh", *words], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


class Slurm:
    """One node of two cores. folder: of its configuration and state."""

    def __init__(self, folder):
        self.folder = folder
        done = _slurm("start", folder)
        if done.returncode == CANNOT:
            raise CannotServeError(done.stderr.strip().splitlines()[-1])
        if done.returncode:
            raise RuntimeError(done.stderr)
        self.env = os.environ | {"SLURM_CONF": done.stdout.strip().splitlines()[-1]}
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "run_step.py"} "$@"\n')
        self.python.chmod(0o755)

    def stop(self):
        self.run("scancel", "--user=root", check=False)
        _slurm("stop", self.folder)

    def run(self, *words, check=True, **env):
        """What a command prints."""
        environment = self.env | {name: str(value) for name, value in env.items()}
        done = subprocess.run(
            [str(word) for word in words], env=environment, capture_output=True, text=True,
            check=False, timeout=PATIENCE,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, data_dir, **env):
        """{step: number of its job} of cluster/submit_all.sh with variables."""
        env |= {"DATA_DIR": data_dir, "PYTHON": self.python, "MAPS": "bh"}
        shown = self.run(ROOT / "cluster" / "submit_all.sh", **env)
        return {int(k): int(job) for k, job in re.findall(r"step (\d+): job (\d+)", shown)}

    def states(self, job):
        """{task: (state, exit status, restarts)} of a job."""
        found = {}
        for line in self.run("scontrol", "show", "job", "-o", job).splitlines():
            said = dict(word.split("=", 1) for word in line.split() if "=" in word)
            tasks = said.get("ArrayTaskId", "0").split("%")[0]
            state = said["JobState"], said["ExitCode"], int(said["Restarts"])
            for part in tasks.split(","):
                first, _, last = part.partition("-")
                found |= dict.fromkeys(range(int(first), int(last or first) + 1), state)
        return found

    def wait(self, jobs):
        """Wait for jobs {step: number} to end; {step: states}. Jobs queued again start at once."""
        numbers = ",".join(map(str, jobs.values()))
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            waiting = self.run("squeue", "-h", "-j", numbers, "-o", "%A %r", check=False)
            if not waiting.strip():
                return {step: self.states(job) for step, job in jobs.items()}
            for line in waiting.splitlines():
                if line.endswith("BeginTime"):
                    job = line.split()[0]
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)
        raise TimeoutError(self.run("squeue"))

    def wait_until(self, condition):
        """Wait until condition() holds."""
        until = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(self.run("squeue"))
            time.sleep(0.2)
