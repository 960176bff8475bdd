"""A real SLURM of one node on the loopback, without accounting, in a folder of its own; needs root and Debian's packages."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

CONF = Path("/etc/slurm/slurm.conf")  # the plugin takes SLURM_CONF from the environment of its job steps
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel")


def missing() -> list[str]:
    """Which of its programs are not here; a note where this is not root."""
    found = [name for name in NEEDED if shutil.which(name) is None]
    found += [] if os.geteuid() == 0 else ["root"]
    return found + ([f"no {CONF} of another SLURM"] if os.path.lexists(CONF) else [])


class Slurm:
    """munged, slurmctld and slurmd as children of this process, on ports that are free."""

    def __init__(self, folder: Path, *, cpus: int = 2, memory_mb: int = 4000) -> None:
        self.folder = folder
        for name in ("state", "spool", "munge"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        self.key, self.socket = folder / "munge" / "key", folder / "munge" / "socket"
        self.key.write_bytes(secrets.token_bytes(128))
        self.key.chmod(0o400)
        (folder / "munge").chmod(0o755)
        self.conf = folder / "slurm.conf"
        self.conf.write_text(self._conf(cpus, memory_mb))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}
        self.processes: dict[str, subprocess.Popen] = {}

    def _conf(self, cpus: int, memory_mb: int) -> str:
        host, folder = socket.gethostname(), self.folder
        ports = [_free_port(), _free_port()]
        lines = {
            "ClusterName": "toy",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.socket}",
            "CredType": "cred/munge",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": folder / "slurmd.pid",
            "SlurmctldLogFile": folder / "slurmctld.log",
            "SlurmdLogFile": folder / "slurmd.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SchedulerType": "sched/builtin",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "MinJobAge": 600,
            "KillWait": 20,
            "SlurmctldTimeout": 30,
            "SlurmdTimeout": 60,
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN\n"
        return text + node + f"PartitionName=toy Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"

    def __enter__(self) -> Slurm:
        CONF.parent.mkdir(exist_ok=True)
        CONF.symlink_to(self.conf)
        self._start("munged", "--foreground", "--force", f"--key-file={self.key}", f"--socket={self.socket}",
                    f"--pid-file={self.folder / 'munge' / 'pid'}", f"--seed-file={self.folder / 'munge' / 'seed'}",
                    f"--log-file={self.folder / 'munge' / 'log'}")  # fmt: skip
        _until(self.socket.exists, "munged")
        self.start_controller()
        self._start("slurmd", "-D", "-f", str(self.conf), "-N", socket.gethostname())
        _until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"), "an idle node")
        return self

    def __exit__(self, *_: object) -> None:
        CONF.unlink()
        self.run("scancel", "--user=root")
        time.sleep(1)
        for process in reversed(list(self.processes.values())):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_controller(self) -> None:
        self._start("slurmctld", "-D", "-f", str(self.conf))
        _until(lambda: "UP" in self.run("scontrol", "ping"), "slurmctld")

    def recover(self) -> None:
        """Start the controller again. It drains a node with a job it does not know: the administrator takes it back."""
        self.start_controller()
        time.sleep(3)
        self.run("scontrol", "update", f"NodeName={socket.gethostname()}", "State=RESUME")

    def kill_controller(self) -> None:
        self.processes["slurmctld"].send_signal(signal.SIGKILL)
        self.processes["slurmctld"].wait()

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def jobs(self, state: str = "RUNNING") -> list[str]:
        return self.run("squeue", "-h", "-t", state, "-o", "%A").split()

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.out", "a") as output:
            self.processes[name] = subprocess.Popen(
                [shutil.which(name), *arguments],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def _until(condition: object, what: str, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.3)
    raise TimeoutError(f"{what} did not come within {seconds:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
