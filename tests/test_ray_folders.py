"""Where Ray's sockets and its token go on a machine of any batch system."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from yatt.cluster.folders import BEHIND, SHORT, SOCKET, ray_environment, ray_folder
from yatt.errors import ConfigError
from yatt.faces import doctor


@pytest.fixture
def long(tmp_path: Path) -> str:
    folder = tmp_path / ("a_very_long_name_of_a_batch_system_" * 2)
    folder.mkdir()
    return str(folder)


def test_a_short_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    assert ray_folder({}) == "/tmp" == ray_folder({"TMPDIR": ""})
    assert ray_folder({"TMPDIR": "/var/tmp"}) == "/var/tmp"
    assert ray_folder({"RAY_TMPDIR": "/dev/shm", "TMPDIR": "/var/tmp"}) == "/dev/shm"
    assert ray_folder({"RAY_TMPDIR": "/tmp/made-by-ray"}) == "/tmp/made-by-ray"


def test_a_long_one_is_none_for_sockets(long):
    assert ray_folder({"TMPDIR": long}) == SHORT[0]
    with pytest.raises(ConfigError) as caught:
        ray_folder({"RAY_TMPDIR": long})
    size = len(long)
    assert str(caught.value) == (
        f"RAY_TMPDIR={long} has {size} bytes: Ray's sockets there would have paths of {size + BEHIND}, and 107 is the "
        "most; set it to a short folder, such as /tmp, or unset it"
    )


def test_the_longest_that_will_do_takes_a_socket(tmp_path):
    """What Ray puts behind it is a name that a socket can be bound to; with one byte more it is none."""
    most = "/tmp/" + "x" * (SOCKET - BEHIND - len("/tmp/"))
    assert ray_folder({"TMPDIR": most}) == most and ray_folder({"TMPDIR": most + "x"}) == "/tmp"
    assert len(most) + BEHIND == SOCKET == 107
    short = Path("/tmp") / f"yatt-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as one:
        name = str(short) + "y" * (SOCKET - len(str(short)))
        one.bind(name)
        os.unlink(name)
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match="too long"):
        one.bind(name + "y")


def test_one_that_is_not_there_or_cannot_be_written_to(tmp_path, monkeypatch):
    assert ray_folder({"TMPDIR": "/dev/null/none"}) == "/tmp"
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for given, why in (("/dev/null/none", "cannot be written to"), ("tmp", "is no absolute path of a folder")):
        with pytest.raises(ConfigError, match=f"RAY_TMPDIR={given} {why}; set it to a short folder"):
            ray_folder({"RAY_TMPDIR": given})
    monkeypatch.setattr("yatt.cluster.folders.SHORT", ("/dev/null/a", "/dev/null/b"))
    with pytest.raises(
        ConfigError, match="TMPDIR=/dev/null/c: neither it nor /dev/null/a, /dev/null/b will do for Ray"
    ):
        ray_folder({"TMPDIR": "/dev/null/c"})


def test_a_cluster_of_this_machine_has_a_token_of_its_own_in_no_file(tmp_path):
    assert len(ray_environment({"HOME": str(tmp_path)})["RAY_AUTH_TOKEN"]) == 64 and not list(tmp_path.iterdir())
    given = ray_environment({"HOME": "/dev/null/none"})
    assert len(given["RAY_AUTH_TOKEN"]) == 64 and given["RAY_AUTH_TOKEN"] != ray_environment({"HOME": "/dev/null/none"})
    assert "RAY_AUTH_TOKEN" not in ray_environment({"HOME": "/dev/null/none", "RAY_AUTH_TOKEN": "mine"})
    assert given["VLLM_RPC_BASE_PATH"] == given["RAY_TMPDIR"] == "/tmp"
    assert "VLLM_RPC_BASE_PATH" not in ray_environment({"VLLM_RPC_BASE_PATH": "/x"})


def test_the_doctor_looks_at_it(long, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", long)
    found = doctor._temporary()
    assert (found.status, found.remedy) == ("ok", "") and "/tmp for Ray" in found.detail
    monkeypatch.setenv("RAY_TMPDIR", long)
    found = doctor._temporary()
    assert found.status == "problem" and found.remedy == "set it to a short folder, such as /tmp, or unset it"
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", "/dev/null/none")
    found = doctor._temporary()
    assert found.status == "warning" and found.remedy.startswith("TMPDIR=/dev/null/none cannot be written to")
