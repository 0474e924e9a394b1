"""A Slurm cluster of one node on this machine, for tests: munged, slurmctld and slurmd in a folder of their own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_CONFIGURATION = """
ClusterName=cocot
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=10
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmOnThisMachine:
    """The cluster; `SLURM_CONF` names it to Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: Empty; its path is short, since it holds a socket.

        Raises:
            TimeoutError: it does not start.
        """
        self._folder, self._host = folder, socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        with socket.socket() as first, socket.socket() as second:
            for each in (first, second):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (first, second)]
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            _CONFIGURATION.format(host=self._host, ports=ports, user=getpass.getuser(), folder=folder)
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        switches = [f"--{name}={folder / file}" for name, file in files.items()]
        self._munged = self._start("munged", "--foreground", "--force", f"--key-file={key}", *switches)
        self._controller = self._start("slurmctld", "-D")
        self.start_node()
        self._wait("idle")

    def start_node(self) -> None:
        """The node begins, or comes back."""
        self._node = self._start("slurmd", "-D", "-N", self._host)

    def lose_node(self) -> None:
        """The node ends as by a power cut, with all that runs on it."""
        self._node.kill()
        self._node.wait()
        for pid in self._steps():
            os.kill(pid, signal.SIGKILL)

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def stop(self) -> None:
        """End everything."""
        self.run("scancel", "--user", getpass.getuser())
        self.lose_node()
        for process in (self._controller, self._munged):
            process.terminate()
            process.wait(timeout=30)

    def logs(self) -> str:
        """What its processes say, for a test that fails."""
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(self._folder.glob("slurm*.log")))

    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.configuration)}

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        quiet = subprocess.DEVNULL
        return subprocess.Popen([program, *command[1:]], stdout=quiet, stderr=quiet, env=self._environment())

    def _wait(self, state: str) -> None:
        end = time.monotonic() + 60
        while True:
            sinfo = ["sinfo", "--noheader", "--format=%T"]
            done = subprocess.run(sinfo, capture_output=True, text=True, check=False, env=self._environment())
            if state in done.stdout.split():
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{done.stderr.strip()} {self.logs()}")
            time.sleep(0.2)

    def _steps(self) -> list[int]:
        """The processes of jobs: slurmstepd and all below it, of this cluster."""
        import psutil

        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_CONF") == str(self.configuration) and process.pid not in (
                    os.getpid(),
                    self._controller.pid,
                    self._munged.pid,
                ):
                    found += [process.pid] if "SLURM_JOB_ID" in process.environ() else []
                if process.name().startswith("slurmstepd"):
                    found += [process.pid, *(child.pid for child in process.children(recursive=True))]
            except psutil.Error:
                continue
        return found


def is_there() -> bool:
    """Whether Slurm is installed."""
    return all(shutil.which(name) or Path("/usr/sbin", name).exists() for name in COMMANDS)
