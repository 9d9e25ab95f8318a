"""Registries: names to members, so that adding one thing touches one place.

Two forms. A `Catalogue` is a package whose modules are the members (file = registration): its names are known without
importing anything, so a sweep file can be checked before torch is loaded. A `Registry` holds decorated functions.

Members from outside are plugins (PLUGINS.md beside this file): the files that $BENCH_PLUGINS names, separated as those
of $PATH are, so that every process of a run has them; and the modules that installed packages name as entry points of
the group `block_sparse_bench`. Each is what would stand in a folder of the suite.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PLUGINS_VARIABLE = "BENCH_PLUGINS"
ENTRY_POINTS = "block_sparse_bench"
BACKEND = ("unsupported", "prepare")  # what a member has that is none of functions


def unknown(noun: str, name: str, accepted: list[str]) -> ValueError:
    """The one wording for a name nobody registered."""
    return ValueError(f"unknown {noun} {name!r}; accepted: {', '.join(accepted)}")


class PluginError(ValueError):
    """A plugin that cannot be used; one line with its file."""


@dataclass(frozen=True)
class Plugin:
    """A module from outside. name: of its member, where it is the member of a catalogue. sha256: of its file."""

    name: str
    module: ModuleType
    sha256: str


class _Loader:
    """The plugins of this process, loaded when they are first asked for, each once."""

    def __init__(self) -> None:
        self.found: dict[str, Plugin] = {}
        self.seen: set[str] = set()
        self.loading = False

    def __call__(self) -> Mapping[str, Plugin]:
        """Plugins by name. PluginError where one cannot be imported, or has the name of another."""
        if self.loading:  # by one that asks for names itself
            return self.found
        self.loading = True
        try:
            for path in map(Path, filter(None, os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep))):
                self._add(path.stem, path, str(path))
            for point in () if "points" in self.seen else importlib.metadata.entry_points(group=ENTRY_POINTS):
                self._add(point.name, point.load, f"entry point {point.name} = {point.value}")
            self.seen.add("points")
        finally:
            self.loading = False
        return self.found

    def _add(self, name: str, source: Any, place: str) -> None:
        if place in self.seen:
            return
        if name in self.found:
            raise PluginError(f"{place}: another plugin is called {name}; accepted: plugins of different names")
        try:
            module = _imported(source) if isinstance(source, Path) else source()
            content = Path(str(module.__file__)).read_bytes()
        except (Exception, SystemExit) as error:  # whatever a file of a user's raises
            why = " ".join(str(error).split()) or "no reason given"
            kind = f"{type(error).__name__}: " if not isinstance(error, PluginError) else ""
            line = f"{place}: no plugin: {kind}{why}"[:500]
            raise PluginError(f"{line}; accepted: a Python file that can be imported") from None
        self.found[name] = Plugin(name, module, hashlib.sha256(content).hexdigest())
        self.seen.add(place)


def _imported(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        raise PluginError("no such file, or its name is none of a Python module")
    name = f"block_sparse_bench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with redirect_stdout(sys.stderr):  # what it says is no answer of a command
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


plugins = _Loader()


class Named:
    """What both forms share: names, and what a sweep file may say."""

    def names(self) -> list[str]:
        """The members' names, sorted, those of plugins among them."""
        raise NotImplementedError

    def accepts(self, name: str) -> bool:
        """Whether a sweep file may say `name`."""
        return name in self.names()

    def accepted(self) -> list[str]:
        """What a sweep file may say, for people."""
        return self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


class Registry(Named, Generic[T]):
    """Functions registered under their own names by decoration."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._members: dict[str, T] = {}

    def register(self, member: T) -> T:
        """Decorator: register `member` under its `__name__` (ValueError if the name is taken)."""
        name: str = member.__name__  # type: ignore[attr-defined]
        if name in self._members:
            raise ValueError(f"{self.noun} {name!r} is registered twice")
        self._members[name] = member
        return member

    def names(self) -> list[str]:
        plugins()
        return sorted(self._members)

    def source(self, name: str) -> Plugin | None:
        """The plugin that registered `name`, or None."""
        home = getattr(self[name], "__module__", "")
        return next((each for each in plugins().values() if each.module.__name__ == home), None)

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            plugins()
        if name not in self._members:
            raise unknown(self.noun, name, self.names())
        return self._members[name]


class Catalogue(Named):
    """The modules of one package, each the home of one member.

    `attribute` is what the member is called inside its module; `helpers` are modules that are no members.
    """

    def __init__(self, noun: str, package: str, attribute: str, helpers: tuple[str, ...] = ()) -> None:
        self.noun, self.package, self.attribute, self.helpers = noun, package, attribute, helpers

    def names(self) -> list[str]:
        """Sorted names of the modules and of plugins that are members."""
        return sorted({*self._own(), *(name for name in plugins() if self.source(name))})

    def _own(self) -> list[str]:
        """Module names, read from the folder: nothing is imported but the (empty) package itself."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        modules = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
        return [name for name in modules if name not in self.helpers]

    def source(self, name: str) -> Plugin | None:
        """The plugin that is the member `name`, or None. PluginError where a module of the suite has that name too."""
        plugin = plugins().get(name)
        if plugin is None or not hasattr(plugin.module, self.attribute):
            return None
        member = getattr(plugin.module, self.attribute)
        if not (callable(member) or all(hasattr(member, each) for each in BACKEND)):
            wanted = f"a {self.noun}, as those of {self.package}"
            raise PluginError(f"{plugin.module.__file__}: its {self.attribute} is no {self.noun}; accepted: {wanted}")
        if name in self._own():
            raise PluginError(
                f"{plugin.module.__file__}: the suite has a {self.noun} {name}; accepted: a file of another name"
            )
        return plugin

    def module(self, name: str) -> ModuleType:
        """The module that is the member `name`; ValueError for an unknown one."""
        if plugin := self.source(name):
            return plugin.module
        if name not in self._own():
            raise unknown(self.noun, name, self.names())
        return importlib.import_module(f"{self.package}.{name}")

    def __getitem__(self, name: str) -> Any:
        return getattr(self.module(name), self.attribute)


BACKENDS = Catalogue("backend", "kernels.backends", "BACKEND")
