"""Files for what nobody has read yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fulgate.drivers import spool


def test_a_file_has_no_name_and_is_where_temporary_files_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder))
    fd = spool.nameless()
    try:
        status = os.fstat(fd)
        assert (status.st_nlink, status.st_mode & 0o777) == (0, 0o600)
        assert status.st_dev == folder.stat().st_dev
        assert Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(folder)
        assert not os.get_inheritable(fd)
        assert os.listdir(folder) == []
    finally:
        os.close(fd)


def test_the_next_folder_is_taken_where_one_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(folder / "none"))
    monkeypatch.setenv("TEMP", str(folder))
    fd = spool.nameless()
    assert Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(folder)
    os.close(fd)


@pytest.mark.replaces_internals
def test_without_any_folder_it_is_the_first_one_s_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in spool.FOLDERS:
        monkeypatch.setenv(name, str(folder / "none"))
    monkeypatch.setattr(spool, "ELSE", (str(folder / "neither"),))
    with pytest.raises(FileNotFoundError, match="none"):
        spool.nameless()
