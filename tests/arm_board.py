"""A real aarch64 board without a board: Debian's own arm64 files under qemu-user, its own sshd, no network but that.

The root is built once from the machine's package sources, outside the repository, under a hash of what it holds. Its
milliseconds are an emulator's and mean nothing; its numbers, wheels and files are those of the architecture.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from boards import CACHE

PACKAGES = (
    "python3-minimal,libpython3-stdlib,mount,libstdc++6,libgomp1,libatomic1,openssh-server,openssh-sftp-server,procps"
)
OWN_PACKAGES = {"arm64": "", "armhf": ",python3-numpy"}  # there is no wheel of numpy for 32-bit Arm
RECIPE = 3  # to be raised when what is built changes otherwise
CPUS = {"arm64": "cortex-a72", "armhf": "cortex-a7"}
EMULATORS = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
RECORDED = Path(__file__).parent / "recorded"
CPUINFO = {  # the emulator shows its host's
    "arm64": RECORDED / "cpuinfo-raspberry-pi-4-64bit.txt",
    "armhf": RECORDED / "cpuinfo-raspberry-pi-4-32bit.txt",
}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
BUILD_LIMIT_S = 600

SSHD_CONFIG = """\
HostKey /mnt/host_key
AuthorizedKeysFile /mnt/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
"""
ENTER = """\
set -e
mount --make-rprivate /
mount -t proc proc {root}/proc
mount --bind {own}/etc/cpuinfo {root}/proc/cpuinfo
mount --rbind /dev {root}/dev
mount --bind {own}/etc {root}/mnt
mount --bind {own}/home {root}/root
mount --bind {own}/lib {root}/var/lib/edgeopt
mount -t tmpfs tmpfs {root}/tmp
mount -t tmpfs tmpfs {root}/run
mkdir {root}/run/sshd
ip link set lo up 2>/dev/null || true
exec env -i QEMU_CPU={cpu} PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot {root} /usr/sbin/sshd -i -e -f /mnt/sshd_config
"""


class Unavailable(Exception):
    """Why such a board cannot be made here."""


class ArmBoard:
    """address, identity and known_hosts are what edgeopt's --device, --identity and --known-hosts take.

    Every connection is one aarch64 `sshd -i` in a network namespace of its own: there is nothing it could reach.
    """

    def __init__(self, folder: Path, architecture: str = "arm64", serial: str = "10000000abcdef01") -> None:
        self.root = board_root(architecture)
        self._cpu = CPUS[architecture]
        self.folder = folder.resolve()
        for name in ("etc", "home", "lib"):
            (self.folder / name).mkdir(parents=True)
        self.files = self.folder / "lib"  # /var/lib/edgeopt on the board
        self.identity = self._key("user_key")
        host_key = self._key("etc/host_key")
        (self.folder / "etc" / "authorized_keys").write_text(self.identity.with_suffix(".pub").read_text())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_key.with_suffix('.pub').read_text()}")
        self.address = f"ssh://root@127.0.0.1:{self.port}"
        (self.folder / "etc" / "sshd_config").write_text(SSHD_CONFIG)
        cpuinfo = re.sub(r"(?m)^(Serial\s*: ).*$", rf"\g<1>{serial}", CPUINFO[architecture].read_text())
        (self.folder / "etc" / "cpuinfo").write_text(cpuinfo)
        self._running: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def options(self) -> list[str]:
        """Command line options that name this board."""
        files = ["--identity", str(self.identity), "--known-hosts", str(self.known_hosts)]
        return ["--device", self.address, *files]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in _processes_under(self.folder):  # jobs run detached
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _serve(self) -> None:
        quoted = {"root": shlex.quote(str(self.root)), "own": shlex.quote(str(self.folder)), "cpu": self._cpu}
        command = ["unshare", "--mount", "--net", "sh", "-c", ENTER.format(**quoted)]
        with (self.folder / "sshd.log").open("ab") as log:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                with connection:
                    self._running.append(
                        subprocess.Popen(
                            command, stdin=connection, stdout=connection, stderr=log, start_new_session=True
                        )
                    )

    def _key(self, name: str) -> Path:
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        return path


def board_root(architecture: str) -> Path:
    """The folder with the board's files, built by the first who asks. Raises Unavailable."""
    _require_tools(architecture)
    recipe = f"{RECIPE} {PACKAGES}{OWN_PACKAGES[architecture]}"
    name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    root = CACHE / f"{architecture}-{name}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            scratch = root.with_name(root.name + ".part")
            shutil.rmtree(scratch, ignore_errors=True)
            _build(scratch, architecture)
            scratch.rename(root)
    return root


def _require_tools(architecture: str) -> None:
    if getpass.getuser() != "root" and os.getuid() != 0:
        raise Unavailable("only root can enter another architecture's files")
    emulator = EMULATORS[architecture]
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        (f"{emulator}-static", "qemu-user-static"),
        ("unshare", "util-linux"),
    ):
        if shutil.which(program) is None:
            raise Unavailable(f"there is no {program}: apt-get install {package}")
    try:
        if not (BINFMT / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True, capture_output=True)
        if not (BINFMT / emulator).exists():
            rule = Path(f"/usr/lib/binfmt.d/{emulator}.conf").read_text().splitlines()[0]
            (BINFMT / "register").write_text(rule + "\n")
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"the kernel takes no foreign programs: {error}") from error


def _build(folder: Path, architecture: str) -> None:
    texts = [path.read_text() for path in SOURCES if path.exists()]
    mirror = re.search(r"(?m)^(?:URIs:|deb(?: \[.*\])?)\s+(\S+)", "\n".join(texts))
    if mirror is None:
        raise Unavailable("no Debian package sources on this machine")
    command = ["mmdebstrap", "--mode=root", f"--architectures={architecture}", "--variant=extract"]
    command += [
        "--include=?essential",
        f"--include={PACKAGES}{OWN_PACKAGES[architecture]}",
        "bookworm",
        str(folder),
        mirror[1],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S)
    if done.returncode:
        raise Unavailable(f"mmdebstrap: {done.stderr.strip()[-400:]}")
    (folder / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/bin/sh\n"
    )
    (folder / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (folder / "etc" / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
    (folder / "etc" / "hostname").write_text("armboard\n")
    for name in ("proc", "sys", "dev", "mnt", "root", "tmp", "run", "var/lib/edgeopt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for library in (folder / "usr" / "lib").glob("*/*/lib*.so.3"):  # what update-alternatives would have done for numpy
        if library.parent.name in ("blas", "lapack"):
            (library.parent.parent / library.name).symlink_to(f"{library.parent.name}/{library.name}")
    for name in ("bin/sh", "usr/bin/python3"):
        if not (folder / name).exists():
            raise Unavailable(f"the board's files have no {name}")


def _processes_under(folder: Path) -> Iterator[int]:
    """Whoever still has one of the board's own files as a mount."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(folder / "lib") in (entry / "mountinfo").read_text() and int(entry.name) != os.getpid():
                    yield int(entry.name)
