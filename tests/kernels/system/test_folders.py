"""Folders that code is loaded from: made shut, and not used where others could put another one in their place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels.system import folders
from kernels.system.cache import cache_folder, say

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache home of this test's own."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    say.cache_clear()
    return folder


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def is_used(home: Path) -> bool:
    """Whether the cache is in its folder; where it is not, nothing was left there."""
    used = cache_folder() == home / folders.NAME
    assert used or not os.path.lexists(home / folders.NAME)
    return used


@pytest.mark.parametrize("umask", [0, 0o002, 0o077, 0o777], indirect=True, ids=oct)
def test_what_is_made_is_shut_whatever_the_umask(
    umask: int, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "new" / "deep"))
    for _ in range(2):
        assert cache_folder() == home / "new" / "deep" / folders.NAME
    for made in (home / "new", home / "new" / "deep", cache_folder()):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.stat().st_mode) == 0o755 and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("mode", "own_group", "used", "said"),
    [
        (0o755, False, True, ""),
        (0o775, True, True, ""),
        (0o775, False, False, "its group"),
        (0o1775, False, True, ""),
        (0o1777, False, True, ""),
        (0o777, True, False, "everybody"),
    ],
)
def test_a_folder_above_that_others_may_write_to(
    mode: int,
    own_group: bool,
    used: bool,
    said: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(folders, "_is_own_group", lambda _: own_group)
    home.chmod(mode)
    assert is_used(home) is used
    lines = capfd.readouterr().err.splitlines()
    assert [f"{home} can be written by {said}" in line for line in lines] == [True] * (not used)
    assert used or is_used(home) is False


@AS_ROOT
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_folder_above_of_another_user(
    mode: int, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    os.chown(home, 1234, 1234)
    home.chmod(mode)
    assert not is_used(home) and f"{home} belongs to another user" in capfd.readouterr().err
    monkeypatch.setattr(folders, "__file__", str(home))  # whose owner could change this code: that is no news to him
    assert is_used(home)


@AS_ROOT
def test_the_owner_of_everything_is_trusted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without the system's root he has another number."""
    os.chown(home, 65534, 65534)
    found = Path.stat

    def owned(path: Path, **more: bool) -> object:
        return SimpleNamespace(st_uid=65534, st_mode=0o40755) if path == Path("/") else found(path, **more)

    monkeypatch.setattr(Path, "stat", owned)
    assert is_used(home)


@pytest.mark.parametrize("link", ["the home", "one above", "the folder"])
def test_a_link_that_others_could_turn_elsewhere(link: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, target = home / "public", home / "target"
    public.mkdir()
    (target / "deep").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(public / "link" / ("deep" if link == "one above" else "")))
    if link == "the folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(target))
        (target / folders.NAME).symlink_to(public / "cache")
        (public / "cache").mkdir()
    else:
        (public / "link").symlink_to(target)
    assert cache_folder().is_relative_to(home)
    public.chmod(0o777)
    assert not cache_folder().is_relative_to(home)


@AS_ROOT
def test_a_link_of_another_user(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public").chmod(0o1777)
    (tmp_path / "public" / "link").symlink_to(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "public" / "link"))
    assert cache_folder().is_relative_to(tmp_path / "public")
    os.chown(tmp_path / "public" / "link", 1234, 1234, follow_symlinks=False)
    assert not cache_folder().is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("members", "primary", "own"),
    [([], ["me"], True), (["me", "root"], ["me"], True), (["other"], ["me"], False), ([], ["me", "other"], False)],
)
def test_a_group_of_ones_own(
    members: list[str], primary: list[str], own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grp
    import pwd

    users = {"root": 0, "me": os.geteuid(), "other": 4321}
    alone = folders._is_own_group.__wrapped__
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=users[name]))
    monkeypatch.setattr(pwd, "getpwall", lambda: [SimpleNamespace(pw_uid=users[name], pw_gid=77) for name in primary])
    monkeypatch.setattr(grp, "getgrgid", {77: SimpleNamespace(gr_mem=members)}.__getitem__)
    assert alone(77) is own and alone(78) is False
