"""This machine as a board behind SSH: an OpenSSH server on loopback with keys of its own, gone when it is closed.

For demos and tests; no file outside its own folder is touched. As a program it serves until Ctrl-C or SIGTERM:
    python examples/loopback_board.py
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SSHD_CONFIG = """\
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
SetEnv "HOME={home}"
LogLevel VERBOSE
"""


class LoopbackBoard:
    """address, identity and known_hosts are what edgeopt's --device, --identity and --known-hosts take."""

    host = "127.0.0.1"
    patience_s = 10.0

    def __init__(self, folder: Path, user: str | None = None) -> None:
        self.folder = folder.resolve()
        self.port = _free_port()
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)
        self.identity = self._key("user_key")
        self._key("host_key")
        (self.folder / "authorized_keys").write_text(self.identity.with_suffix(".pub").read_text())
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {(self.folder / 'host_key.pub').read_text()}")
        self.address = f"ssh://{user or getpass.getuser()}@{self.host}:{self.port}"
        self.log = self.folder / "sshd.log"
        self._process = subprocess.Popen(self.command())
        self._await_server()

    def command(self) -> list[str]:
        """How the server is started, in the foreground."""
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        if not os.access(sshd, os.X_OK):
            raise RuntimeError("there is no sshd here: apt-get install openssh-server")
        config = self.folder / "sshd_config"
        config.write_text(SSHD_CONFIG.format(host=self.host, port=self.port, folder=self.folder, home=self.home))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
        return [sshd, "-D", "-f", str(config), "-E", str(self.log)]

    @property
    def options(self) -> list[str]:
        """Command line options that name this board."""
        files = ["--identity", str(self.identity), "--known-hosts", str(self.known_hosts)]
        return ["--device", self.address, *files]

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _key(self, name: str) -> Path:
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        return path

    def _await_server(self) -> None:
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            time.sleep(0.05)
        self._process.kill()
        said = self.log.read_text() if self.log.exists() else "nothing was logged"
        raise RuntimeError(f"the SSH server did not start: {said}")


@contextlib.contextmanager
def loopback_board() -> Iterator[LoopbackBoard]:
    """A board in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="loopback-board-") as folder:
        board = LoopbackBoard(Path(folder))
        try:
            yield board
        finally:
            board.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server and its keys go then too
    with loopback_board() as served:
        print("edgeopt status " + " ".join(served.options) + f" --root {served.home}/edgeopt", flush=True)
        print(f"stop: Ctrl-C, or kill {os.getpid()}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(24 * 3600)


if __name__ == "__main__":
    main()
