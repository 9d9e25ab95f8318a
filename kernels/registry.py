"""Registries: names to members, so that adding one thing touches one place.

Two forms. A `Catalogue` is a package whose modules are the members (file = registration): its names are known without
importing anything, so a sweep file can be checked before torch is loaded. A `Registry` holds decorated functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def unknown(noun: str, name: str, accepted: list[str]) -> ValueError:
    """The one wording for a name nobody registered."""
    return ValueError(f"unknown {noun} {name!r}; accepted: {', '.join(accepted)}")


class Registry(Generic[T]):
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
        return sorted(self._members)

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            raise unknown(self.noun, name, self.names())
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


class Catalogue:
    """The modules of one package, each the home of one member.

    `attribute` is what the member is called inside its module; `helpers` are modules that are no members.
    """

    def __init__(self, noun: str, package: str, attribute: str, helpers: tuple[str, ...] = ()) -> None:
        self.noun, self.package, self.attribute, self.helpers = noun, package, attribute, helpers

    def names(self) -> list[str]:
        """Sorted module names, read from the folder: nothing is imported but the (empty) package itself."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations is not None
        modules = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
        return sorted(name for name in modules if name not in self.helpers)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names():
            raise unknown(self.noun, name, self.names())
        return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


BACKENDS = Catalogue("backend", "kernels.backends", "BACKEND")
