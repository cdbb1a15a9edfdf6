"""Reads a Dockerfile, and runs its build steps in a folder where no container engine is at hand.

Contract: `read` gives stages with their instructions; words that this file does not know are an
error. `Build` carries out COPY and RUN below a folder that stands for `/`, from the files that
.dockerignore leaves, with a shell and without a network. Not covered: the base image, heredocs,
escapes other than a backslash at the end of a line, and instructions that need root.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

WORDS = frozenset(
    ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN")
) | frozenset(("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"))
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s+")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_TOPS = re.compile(r"(?<![\w./:-])/(opt|src|wheels|data|tmp)(?=[/\s\"':]|$)")


@dataclass(frozen=True)
class Step:
    """One instruction: its word, its flags and the rest of its line."""

    word: str
    flags: Mapping[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest in words, of a JSON array or of a plain line."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def all(self, word: str) -> list[Step]:
        """Its instructions of one kind."""
        return [step for step in self.steps if step.word == word]

    def last(self, word: str) -> Step:
        """The instruction of a kind that counts."""
        return self.all(word)[-1]

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """What its ENV instructions make of an environment."""
        found = dict(before)
        for step in self.all("ENV"):
            for pair in step.words:
                name, _, value = pair.partition("=")
                found[name] = expand(value, found)
        return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put variables in, as Docker does outside of RUN."""
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def read(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for word, rest in _lines(text):
        if word not in WORDS:
            raise ValueError(f"the Dockerfile has an instruction {word}")
        if word == "FROM":
            base, *name = rest.split()
            stages.append(Stage(expand(base, arguments), name[1] if name else ""))
        elif not stages:
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            stages[-1].steps.append(_step(word, rest))
    return arguments, stages


def _lines(text: str) -> Iterator[tuple[str, str]]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in kept.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word, rest.strip()


def _step(word: str, rest: str) -> Step:
    flags: dict[str, str] = {}
    while found := _FLAG.match(rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Step(word, flags, rest)


class Ignored:
    """What .dockerignore keeps from the build; a folder takes along what is in it."""

    def __init__(self, text: str) -> None:
        lines = (line.strip() for line in text.splitlines())
        self.patterns = [line for line in lines if line and not line.startswith("#")]

    def __call__(self, path: PurePosixPath) -> bool:
        """Whether a path, relative to the root, is left out; the last pattern that fits says."""
        names = [path.as_posix(), *(str(parent) for parent in path.parents if parent.name)]
        found = False
        for pattern in self.patterns:
            fits = re.compile(_regex(pattern.removeprefix("!").strip("/"))).fullmatch
            if any(map(fits, names)):
                found = not pattern.startswith("!")
        return found


def _regex(pattern: str) -> str:
    """A pattern of Go's filepath.Match with `**`, as a regular expression."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", pattern)
    return "".join(parts.get(word) or re.escape(word) for word in words)


class Build:
    """Carries out stages below `root`; `after_venv` is told of the virtual environment they make.

    Later stages find what earlier ones left, so stages with one folder for different things
    would be in each other's way.
    """

    def __init__(
        self,
        context: Path,
        root: Path,
        environment: Mapping[str, str],
        after_venv: Callable[[Path], None],
    ) -> None:
        self._context = context
        self._root = root
        self._environment = environment
        self._after_venv = after_venv
        self._ignored = Ignored((context / ".dockerignore").read_text(encoding="utf-8"))

    def inside(self, text: str) -> str:
        """A text with absolute paths, as it has to be said here."""
        return _TOPS.sub(lambda found: f"{self._root}/{found[1]}", text)

    def run(self, stages: list[Stage]) -> None:
        """Build stages, one on top of the other."""
        folder, arguments = self._root, dict[str, str]()
        for step in (step for stage in stages for step in stage.steps):
            if step.word == "WORKDIR":
                folder = Path(self.inside(step.rest))
                folder.mkdir(parents=True, exist_ok=True)
            elif step.word == "ARG":
                name, _, arguments[name] = step.rest.partition("=")
            elif step.word == "COPY":
                *sources, target = step.words
                for source in sources:
                    self._copy(source, folder / target)
            elif step.word == "RUN":
                self._shell(step.rest, folder, arguments)
            else:
                raise ValueError(f"{step.word} in a stage that builds")

    def _copy(self, source: str, target: Path) -> None:
        """A folder's content goes into the target, a file into it or in its place."""
        path = self._context / source
        if self._ignored(PurePosixPath(source)) or not path.exists():
            raise FileNotFoundError(f"COPY {source}: not there, or left out by .dockerignore")
        if path.is_file():
            shutil.copy(path, target)
            return
        for found in sorted(path.rglob("*")):
            to = target / found.relative_to(path)
            if found.is_file() and not self._ignored(_relative(found, self._context)):
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, to)

    def _shell(self, command: str, folder: Path, arguments: Mapping[str, str]) -> None:
        done = subprocess.run(
            ["sh", "-c", self.inside(command)],
            cwd=folder,
            env={**self._environment, **arguments},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        for made in re.findall(r"-m venv (\S+)", self.inside(command)):
            self._after_venv(Path(made))


def _relative(path: Path, root: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(root).as_posix())


def shell_environment(scratch: Path) -> dict[str, str]:
    """This interpreter first on the path, no network for pip, and nothing of the caller's."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
