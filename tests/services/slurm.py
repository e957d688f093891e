"""The real Slurm of tests/services/slurm.sh, and the jobs of cluster/submit_all.sh there."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CANNOT = 77  # exit status of slurm.sh: not on this machine
PATIENCE = 600  # seconds; the machine may be busy
REQUEUED_SECONDS = 5  # that a job queued again waits; Slurm's own two minutes are long for a test


class CannotServeError(Exception):
    """Slurm cannot be installed on this machine, or does not run on it: the reason."""


def _slurm(*words):
    return subprocess.run(
        [HERE / "slurm.sh", *words], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def _node():
    return socket.gethostname().split(".")[0]


def _parent_daemon(pid):
    """The slurmstepd that a process is a child of, else None."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
            return parent
    return None


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
        """Wait for jobs {step: number} to end; {step: states}. Jobs queued again start soon."""
        numbers, held = ",".join(map(str, jobs.values())), {}
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            waiting = self.run("squeue", "-h", "-j", numbers, "-o", "%A %r", check=False)
            if not waiting.strip():
                return {step: self.states(job) for step, job in jobs.items()}
            for line in waiting.splitlines():
                job, _, reason = line.partition(" ")
                since = held.setdefault(job, time.monotonic()) if reason == "BeginTime" else None
                if since is not None and time.monotonic() > since + REQUEUED_SECONDS:
                    del held[job]
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)
        raise TimeoutError(self.run("squeue"))

    def lose_node(self):
        """As if the power had failed: nothing that ran on the node does any more, nor says so."""
        listed = self.run("scontrol", "listpids").splitlines()[1:]
        pids = {int(line.split()[0]) for line in listed} - {-1}
        daemons = {parent for pid in pids if (parent := _parent_daemon(pid))}
        slurmd = int((self.folder / "slurmd.pid").read_text())
        for pid in (slurmd, *daemons, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={_node()}", "state=down", "reason=lost")

    def return_node(self):
        """The node is there again."""
        self.run("slurmd")
        self.wait_until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"))

    def wait_until(self, condition):
        """Wait until condition() holds."""
        until = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(self.run("squeue"))
            time.sleep(0.2)
