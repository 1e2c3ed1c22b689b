"""Boards behind other SSH servers, users and shells: dropbear, an ordinary user, dash, busybox, login noise.

Each server runs in a mount namespace of its own with its own /etc/passwd, so neither the machine's users nor their
home folders are touched; that needs root.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import CACHE
from loopback_board import LoopbackBoard

NAMESPACE = """\
set -e
for name in passwd group shadow shells; do mount --bind "$1/$name" /etc/$name; done
if [ -d "$1/home" ]; then
  for inner in $2; do mount --bind "$3/$inner" "$1/home/$inner"; done
  mount --rbind "$1/home" "$3"
fi
shift 3
exec "$@"
"""


ROOTS_HOME = Path(pwd.getpwuid(0).pw_dir)


@dataclasses.dataclass(frozen=True)
class Account:
    """`shell` is what the server starts for each command; `busybox ash` is a link that is made for it."""

    name: str
    uid: int
    shell: str = "/bin/sh"


ROOT = Account("root", 0)
ORDINARY = Account("board", 61234)


class NamespacedBoard(LoopbackBoard):
    """OpenSSH or dropbear for one account; `settings` are further lines of sshd_config."""

    def __init__(
        self, folder: Path, server: str = "openssh", account: Account = ROOT, settings: str = "", banner: str = ""
    ) -> None:
        self.server, self.account, self._settings, self._banner = server, account, settings, banner
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        super().__init__(folder, account.name)

    def command(self) -> list[str]:
        (self.folder / "banner").write_text(self._banner)
        command = self._openssh() if self.server == "openssh" else self._dropbear()
        view = self.folder / "etc"
        view.mkdir()
        shell = self._shell()
        lines = {
            "passwd": f"root:x:0:0:root:{self.home}:{shell}\n",
            "group": f"{ORDINARY.name}:x:{ORDINARY.uid}:\n",
            "shadow": f"root:*:19000:0:99999:7:::\n{self.account.name}:*:19000:0:99999:7:::\n",
            "shells": f"{shell}\n",
        }
        if self.account.uid:
            lines["passwd"] += f"{self.account.name}:x:{self.account.uid}:{self.account.uid}::{self.home}:{shell}\n"
        for name, text in lines.items():
            (view / name).write_text(text)
        for name in ("passwd", "group"):  # the users of services; of two lines for one name the first counts
            with (view / name).open("a") as file:
                file.write(Path("/etc", name).read_text())
        inner = self._open_root_home(view) if self.account.uid else []
        for path in [self.home, *self.home.rglob("*")]:
            os.chown(path, self.account.uid, self.account.uid)
        self.given = [str(view), " ".join(inner), str(ROOTS_HOME)]  # to NAMESPACE; behind it comes the server
        return ["unshare", "--mount", "/bin/sh", "-c", NAMESPACE, "sh", *self.given, *command]

    def _shell(self) -> str:
        if self.account.shell != "busybox ash":
            return self.account.shell
        busybox = shutil.which("busybox")
        if busybox is None:
            pytest.skip("there is no busybox here: apt-get install busybox-static")
        (self.folder / "ash").symlink_to(busybox)
        return str(self.folder / "ash")

    @staticmethod
    def _open_root_home(view: Path) -> list[str]:
        """In this namespace an ordinary user may run the Pythons of root's home; nothing else there is shown."""
        pythons = [CACHE, Path(sys.prefix), Path(sys.base_prefix), Path.home() / ".pyenv"]
        found = sorted({str(path.relative_to(ROOTS_HOME)) for path in pythons if path.is_relative_to(ROOTS_HOME)})
        found = [name for name in found if (ROOTS_HOME / name).is_dir() and not name.startswith(".pyenv/")]
        for name in found:
            (view / "home" / name).mkdir(parents=True)
        return found

    def _openssh(self) -> list[str]:
        command = super().command()
        config = self.folder / "sshd_config"
        banner = f"Banner {self.folder / 'banner'}\n" if self._banner else ""
        config.write_text(self._settings + banner + config.read_text())
        return command

    def _dropbear(self) -> list[str]:
        if shutil.which("dropbear") is None:
            pytest.skip("there is no dropbear here: apt-get install dropbear-bin")
        keys = self.home / ".ssh"
        keys.mkdir(mode=0o700)
        shutil.copy(self.folder / "authorized_keys", keys)
        key = self.folder / "dropbear_key"
        convert = ["dropbearconvert", "openssh", "dropbear", str(self.folder / "host_key"), str(key)]
        subprocess.run(convert, check=True, capture_output=True)
        banner = ["-b", str(self.folder / "banner")] if self._banner else []
        pid = str(self.folder / "dropbear.pid")
        return ["dropbear", "-F", "-E", "-s", "-m", "-r", str(key), "-P", pid, "-p", f"127.0.0.1:{self.port}", *banner]


@contextlib.contextmanager
def namespaced_board(**how: object) -> Iterator[NamespacedBoard]:
    """A running server in a folder that its account may enter; skips where that is not possible."""
    if os.getuid() != 0 or not sys.platform.startswith("linux") or not _may_unshare():
        pytest.skip("only root can give a server users of its own (a mount namespace)")
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-board-"))
    try:
        board = NamespacedBoard(folder / "server", **how)  # type: ignore[arg-type]
        folder.chmod(0o755)
        try:
            yield board
        finally:
            board.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _may_unshare() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
