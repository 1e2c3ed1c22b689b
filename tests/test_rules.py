"""Rules that can run, run: layering of imports, light start, README blocks, --help with examples."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import REPOSITORY

from edgeopt import profile, runfile
from edgeopt.cli import COMMANDS, cli

# From what people touch down to what nothing may depend on; a module imports its own layer and those below.
LAYERS = (
    {"cli", "__main__"},
    {"optimize", "pack", "trial", "sampled", "stages", "origin", "data", "decode", "ladder", "tools"},
    {"flash", "validate", "evidence", "recompute", "diagnose", "placement", "power", "sustained", "load", "measure"}
    | {"report", "setup", "probe", "scaffold", "kept", "documents"},
    {"meters"},
    {"bundle", "compress", "lower", "device"},
    {"parity", "artifact"},
    {"fidelity"},
    {"align"},
    {"energy", "cost"},
    {"frozen"},
    {"stats", "conditions", "slices", "cache", "trace", "meter_lines", "onboard"},
    {"plan"},
    {"runfile"},
    {"distributions", "sensing", "intervals", "arrays", "provenance"},
    {"profile", "model", "onnx_model", "binding", "signature", "determinism", "quantizable"}
    | {"task", "parts", "tasks", "config", "toml_lines", "formats"},
    {"errors", "floor", "disk", "visible"},
)
HEAVY = {
    *("torch", "torch_pruning", "litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
    *("openvino", "nncf", "onnx", "onnxruntime"),
}
MAY_LOAD_FRAMEWORKS = {"model", "onnx_model", "signature", "determinism", "quantizable", "parity", "compress", "lower"}
AGENT_FOR_HOST = {"wire", "preprocess", "requests", "replies"}
RUNTIME_PACKAGES = {"ai_edge_litert", "tflite_runtime", "openvino", "onnxruntime"}


def modules(package: Path, name: str) -> Iterator[tuple[str, str, Path]]:
    """(full module name, its part: the first name below the package, file)."""
    for path in sorted(package.rglob("*.py")):
        parts = [name, *path.relative_to(package).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), parts[1] if len(parts) > 1 else "", path


def imports(path: Path, module: str) -> Iterator[tuple[str, bool]]:
    """(absolute name imported, whether it is at module level and at run time)."""
    is_package = path.name == "__init__.py"
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    checking = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    lazy = {inner for outer in [*functions, *checking] for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            base = base[: len(base) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{start}.{alias.name}", node not in lazy


HOST = list(modules(REPOSITORY / "edgeopt", "edgeopt"))
AGENT = list(modules(REPOSITORY / "agent" / "edgeopt_agent", "edgeopt_agent"))


def layer_of(part: str) -> int:
    found = [index for index, parts in enumerate(LAYERS) if part in parts]
    assert found, f"edgeopt/{part} has no place in LAYERS"
    return found[0]


@pytest.mark.parametrize(("module", "part", "path"), [m for m in HOST if m[1]], ids=[m[0] for m in HOST if m[1]])
def test_imports_go_down(module: str, part: str, path: Path) -> None:
    for name, _ in imports(path, module):
        words = name.split(".")
        if words[0] == "edgeopt" and len(words) > 1:
            target = words[1]
            assert layer_of(target) >= layer_of(part), f"{module} imports {name}, which is above it"
        if words[0] == "edgeopt_agent":
            assert words[1] in AGENT_FOR_HOST, f"{module} imports {name}; of the agent only {AGENT_FOR_HOST}"


@pytest.mark.parametrize(("module", "part", "path"), HOST, ids=[m[0] for m in HOST])
def test_frameworks_are_loaded_on_use_and_in_their_places(module: str, part: str, path: Path) -> None:
    for name, at_start in imports(path, module):
        top = name.split(".")[0]
        if top in HEAVY:
            typing_only = part not in MAY_LOAD_FRAMEWORKS
            assert not at_start, f"{module} imports {name} when it is loaded"
            assert not typing_only or is_type_checking_only(path, top), f"{module} imports {name}"
        if top in {"click"}:
            assert part == "cli", f"{module} imports click"


def is_type_checking_only(path: Path, top: str) -> bool:
    tree = ast.parse(path.read_text())
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    inside = {inner for outer in guarded for inner in ast.walk(outer)}
    users = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == top for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == top)
    ]
    return all(node in inside for node in users)


@pytest.mark.parametrize(("module", "part", "path"), HOST, ids=[m[0] for m in HOST])
def test_only_the_cli_prints_and_exits(module: str, part: str, path: Path) -> None:
    if part in ("cli", "", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "sys.exit", "exit", "input"}, f"{module}, line {node.lineno}: {called}()"


@pytest.mark.parametrize(("module", "part", "path"), AGENT, ids=[m[0] for m in AGENT])
def test_the_agent_needs_only_the_standard_library(module: str, part: str, path: Path) -> None:
    allowed_on_use = {"numpy", *(RUNTIME_PACKAGES if part == "runtimes" else set())}
    for name, at_start in imports(path, module):
        top = name.split(".")[0]
        if top == "edgeopt_agent" or top in sys.stdlib_module_names:
            continue
        assert top in allowed_on_use, f"{module} imports {name}"
        assert not at_start, f"{module} imports {name} when it is loaded"


@pytest.mark.parametrize("command", ["--help", *(f"{name} --help" for name in COMMANDS), "profiles list"])
def test_light_start(command: str) -> None:
    """`--help` and what needs no board load neither numpy nor a framework."""
    script = (
        "import sys; sys.argv = ['edgeopt', *sys.argv[1:]]\n"
        "from edgeopt.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"loaded = sorted({HEAVY | {'numpy', 'paramiko', 'scipy'}} & set(sys.modules))\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", script, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", inner) for sub, inner in command.commands.items())


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_help_has_an_example_that_parses(name: str, command: click.Command) -> None:
    example = re.search(r"Example:\n((?:\s+edgeopt .*\n?)+)", command.help or "")
    assert example, f"`edgeopt {name} --help` has no example"
    for line in example[1].strip().splitlines():
        parse(line.strip())
    if not isinstance(command, click.Group):
        assert "--json" in [option for parameter in command.params for option in parameter.opts]


def parse(line: str) -> None:
    """A command line as a user would type it: every word of it must be known."""
    words = shlex.split(line, comments=True)
    assert words[0] == "edgeopt", line
    context = click.Context(cli, info_name="edgeopt")
    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, f"{line}: there is no command {rest[0]}"
        command, rest = found, rest[1:]
    command.make_context(words[1], rest)


def blocks() -> list[tuple[str, str]]:
    """(language, text) of README's fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("language", "text"), blocks())
def test_readme_blocks_hold(language: str, text: str) -> None:
    if language == "sh":
        for line in filter(None, map(str.strip, text.splitlines())):
            words = shlex.split(line, comments=True)
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), line
            elif words[0] == "pip":
                extras = re.search(r"\[(.*)\]", words[-1])
                known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                assert not extras or set(extras[1].split(",")) <= set(known), line
            else:
                parse(line)
    elif language == "toml":
        schema = runfile.RunFile if text.startswith("# run file") else profile.DeviceProfile
        schema.model_validate(tomllib.loads(text))
    else:
        assert language == "python", language
        scope: dict[str, object] = {}
        exec(compile(text, "README.md", "exec"), scope)
        task = scope["task"]()  # type: ignore[operator]
        arrays = task.arrays()
        assert task.score([arrays["image"].reshape(4, -1)], arrays["label"]).shape == (4,)


def test_readme_has_blocks_of_every_kind() -> None:
    assert {language for language, _ in blocks()} == {"sh", "toml", "python"}


def test_every_word_to_a_screen_passes_one_function() -> None:
    """What is foreign in it then does nothing there (edgeopt.visible)."""
    own = {"display.py", "document.py", "completion.py", "screen.py"}
    for path in (REPOSITORY / "edgeopt" / "cli").glob("*.py"):
        found = re.findall(r"click\.(?:s?echo)\(|rich\.console|(?<![.\w])print\(", path.read_text())
        assert path.name in own or not found, f"{path.name}: {found}; use display.echo, echo_message or screen"


def test_readme_names_every_command_and_preprocess_step() -> None:
    from edgeopt_agent import preprocess

    text = (REPOSITORY / "README.md").read_text()
    for name in [*COMMANDS, *preprocess.OPERATIONS, *preprocess.METRICS]:
        assert re.search(rf"\b{name}\b", text), f"README does not mention {name}"
