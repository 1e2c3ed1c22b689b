"""A board that runs systemd and logind, as process 1 of namespaces of its own, with an SSH server that logs in by PAM.

Its cgroups hang below one of ours, its /run and /var/lib/systemd are empty at first: nothing of the machine is changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import processes
from servers import Account, NamespacedBoard

CGROUPS = Path("/sys/fs/cgroup")
NEEDED = ("systemd", "unified")
HIERARCHIES = (*NEEDED, "memory", "pids", "devices", "blkio", "freezer")  # cpu's need settings that a new group lacks
UNITS = Path("/lib/systemd/system")
WANTED = ("dbus.service", "systemd-logind.service", "board-sshd.service")
UNNEEDED = """\
systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-sysctl
systemd-modules-load systemd-random-seed systemd-machine-id-commit systemd-update-utmp systemd-sysusers
systemd-journal-flush systemd-journald systemd-timesyncd modprobe@drm keyboard-setup systemd-binfmt
systemd-firstboot systemd-remount-fs kmod-static-nodes systemd-hwdb-update apparmor
"""  # what starts with any system, and would touch the machine or wait for hardware
ENTER = """\
for each in /sys/fs/cgroup/*/"$0"; do echo $$ > "$each"/cgroup.procs || exit 1; done
exec "$@"
"""
BOOT = """\
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/systemd
mkdir -p /run/systemd/system /run/systemd/logind.conf.d /run/sshd /run/lock
for unit in {unneeded}; do ln -s /dev/null /run/systemd/system/$unit; done
cp {units}/*.target {units}/*.service {units}/*.conf /run/systemd/system/
mv /run/systemd/system/kill.conf /run/systemd/logind.conf.d/
mount --bind {units}/pam /etc/pam.d
umount -R /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
export container=other
exec /lib/systemd/systemd --system --unit=board.target --log-target=console > {console} 2>&1 < /dev/null
"""
PAM = "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_systemd.so\n"


class SystemdBoard(NamespacedBoard):
    """OpenSSH for one account; logind ends the processes of a login, everybody's, root's too."""

    patience_s = 60.0

    def __init__(self, folder: Path, account: Account) -> None:
        self._cgroup = f"edgeopt-{os.getpid()}-{account.uid}"
        super().__init__(folder, account=account, settings="UsePAM yes\n")

    @property
    def pid(self) -> int:
        """The SSH server's, not systemd's."""
        config = str(self.folder / "sshd_config")
        return min(pid for pid, _, command in processes() if command.startswith("/") and config in command)

    def run(self, *command: str) -> str:
        """A command on the board, as root."""
        first = min(pid for pid, parent, _ in processes() if parent == self._process.pid)
        done = subprocess.run(
            ["nsenter", "-t", str(first), "-a", *command], check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout

    def command(self) -> list[str]:
        unshare, _, shell, *rest = super().command()
        at = rest.index(self.given[0]) + len(self.given)
        (self.folder / "units" / "pam").mkdir(parents=True)
        for name, text in self._files(rest[at:]).items():
            (self.folder / "units" / name).write_text(text)
        unneeded = (
            " ".join(f"{name}.service" for name in UNNEEDED.split()) + " local-fs.target swap.target getty.target"
        )
        unneeded += "".join(f" {path.name}" for path in [*UNITS.glob("*.mount"), *UNITS.glob("*udev*.socket")])
        unneeded += "".join(f" {path.name}" for path in [*UNITS.glob("*journal*.socket"), *UNITS.glob("*.automount")])
        self.console = self.folder / "console"
        (self.folder / "boot").write_text(
            BOOT.format(units=self.folder / "units", unneeded=unneeded, console=self.console)
        )
        for path in self._groups():
            path.mkdir(exist_ok=True)
        apart = [unshare, "--cgroup", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
        boot = ["/bin/sh", str(self.folder / "boot")]
        return ["/bin/sh", "-c", ENTER, self._cgroup, *apart, shell, *rest[:at], *boot]

    def _groups(self) -> list[Path]:
        return [path / self._cgroup for name in HIERARCHIES if (path := CGROUPS / name).is_dir()]

    @staticmethod
    def _files(sshd: list[str]) -> dict[str, str]:
        wanted = " ".join(WANTED)
        return {
            "board.target": f"[Unit]\nWants={wanted}\nAfter={wanted}\nAllowIsolate=yes\n",
            "board-sshd.service": f"[Service]\nExecStart={' '.join(sshd)}\nKillMode=process\n",
            "kill.conf": "[Login]\nKillUserProcesses=yes\nKillExcludeUsers=\n",
            "pam/sshd": PAM,
            "pam/systemd-user": PAM,
            "pam/other": PAM,
        }

    def close(self) -> None:
        self._process.kill()  # unshare passes over SIGTERM; its child, process 1 there, goes with it, and all with that
        super().close()
        for top in self._groups():
            deadline = time.monotonic() + 10
            while top.exists() and time.monotonic() < deadline:
                for path, _, _ in os.walk(top, topdown=False):  # passes over what the kernel takes away meanwhile
                    with contextlib.suppress(OSError):
                        os.rmdir(path)


@contextlib.contextmanager
def systemd_board(account: Account) -> Iterator[SystemdBoard]:
    """A booted board; skips where systemd, PAM's part of it, root or cgroups to write to are missing."""
    parts = ["/lib/systemd/systemd", "/usr/bin/loginctl", "/usr/bin/dbus-daemon"]
    missing = [part for part in parts if not Path(part).exists()]
    missing += [] if list(Path("/lib").glob("*/security/pam_systemd.so")) else ["pam_systemd.so"]
    missing += [str(CGROUPS / name) for name in NEEDED if not os.access(CGROUPS / name, os.W_OK)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a board with logind needs root and {', '.join(missing) or 'namespaces'}")
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-systemd-"))
    folder.chmod(0o755)
    try:
        board = SystemdBoard(folder / "server", account)
        try:
            yield board
        finally:
            board.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
