"""Where logind ends a user's processes with the login (KillUserProcesses=yes), a detached job would die with the link.

A job is then started outside the login's scope: in the system's for root, in the user's own manager for others, which
stays without a login only where lingering is enabled. That is the owner's to allow, so without it there is a warning.
"""

from __future__ import annotations

import os
import pwd
import re
from typing import Dict, List, Optional, Tuple

BOOTED = "/run/systemd/system"  # sd_booted(3)
ANSWER_S = 5.0


def parse_properties(text: str) -> Dict[str, str]:
    """NAME=VALUE lines, as `loginctl show-user` prints them."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def kills(manager: Dict[str, str], user: str) -> bool:
    """Whether logind ends this user's processes at logout; of its two lists, the one of exceptions wins."""
    if manager.get("KillUserProcesses") != "yes" or user in manager.get("KillExcludeUsers", "").split():
        return False
    only = manager.get("KillOnlyUsers", "").split()
    return not only or user in only


def escape() -> Tuple[List[str], Optional[str]]:
    """(words to put before a job's command so that it outlives the login, a warning where nothing helps)."""
    if not os.path.isdir(BOOTED):
        return [], None
    import shutil

    if shutil.which("loginctl") is None:
        return [], None
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    if not kills(_properties("KillUserProcesses", "KillExcludeUsers", "KillOnlyUsers"), user):
        return [], None
    root = os.geteuid() == 0
    if shutil.which("systemd-run") is None:
        return [], _warning(user, "there is no systemd-run to start them outside the login")
    if not root and _properties("Linger", user=user).get("Linger") != "yes":
        return [], _warning(user, "run `loginctl enable-linger %s` there once" % user)
    prefix = ["systemd-run", *([] if root else ["--user"]), "--scope", "--quiet", "--collect", "--"]
    failed = _said([*prefix, "true"])[1]
    return ([], _warning(user, "systemd-run says: %s" % failed)) if failed is not None else (prefix, None)


def environment() -> Dict[str, str]:
    """What systemd-run --user needs to find the user's manager; a login without PAM does not set it."""
    return dict({"XDG_RUNTIME_DIR": "/run/user/%d" % os.geteuid()}, **os.environ)


def _warning(user: str, mend: str) -> str:
    return (
        "logind ends the processes of user '%s' when the login ends (KillUserProcesses=yes): if the link is lost, a "
        "running job dies with it; %s" % (user, mend)
    )


def _properties(*names: str, user: str = "") -> Dict[str, str]:
    """Of a user, or of logind itself; empty where it does not answer."""
    command = ["loginctl", "show-user", *(part for name in names for part in ("-p", name)), *([user] if user else [])]
    return parse_properties(_said(command)[0])


def _said(command: List[str]) -> Tuple[str, Optional[str]]:
    """(stdout, what went wrong or None)."""
    import subprocess

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    words = done.stderr.decode("utf-8", "replace").strip() or "exit code %d" % done.returncode
    return done.stdout.decode("utf-8", "replace"), words if done.returncode != 0 else None
