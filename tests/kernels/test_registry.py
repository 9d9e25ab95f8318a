"""Registries: names without imports, one wording for unknown names."""

import subprocess
import sys

import pytest

from kernels.problem import Backend
from kernels.registry import BACKENDS, Registry


def test_unknown_names_list_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'cublas'; accepted: .*dense"):
        BACKENDS["cublas"]


def test_names_import_no_torch() -> None:
    code = "import sys; from kernels.registry import BACKENDS; BACKENDS.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_backend_has_the_name_of_its_module() -> None:
    assert [BACKENDS[name].name for name in BACKENDS] == BACKENDS.names()
    assert all(isinstance(BACKENDS[name], Backend) for name in BACKENDS)


def test_decorated_functions() -> None:
    registry: Registry[object] = Registry("thing")

    @registry.register
    def first() -> None: ...

    assert registry.names() == ["first"] and registry["first"] is first
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(first)
    with pytest.raises(ValueError, match="unknown thing 'second'; accepted: first"):
        registry["second"]
