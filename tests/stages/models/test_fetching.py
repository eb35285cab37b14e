"""Data files from the web: downloaded once, checked, cached, with a clear error otherwise."""

from __future__ import annotations

import hashlib

import pytest
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.fetch.data_files import Unreachable, cache_folder, local_file
from clipmill.stages.references import DataFile
from tests.http_server import File, serve

DATA = b"weights of a head"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def site():
    with serve() as server:
        server.script("/heads/a%20head+1.pth", File(DATA, content_type="text/plain"))
        yield server


def head(site, path: str = "/heads/a%20head+1.pth", digest: str = DIGEST) -> DataFile:
    return DataFile.model_validate(f"{site.url(path)}#sha256={digest}")


def test_file_is_downloaded_once_and_then_read_from_the_cache(site):
    file = head(site)
    place = local_file(file, setting="a.head")
    assert place.read_bytes() == DATA
    assert (place.name, file.name) == ("a head+1.pth",) * 2
    assert local_file(file, setting="a.head") == place
    assert len(site.log) == 1
    assert file.identity() == DataFile(path=str(place)).identity()


def test_damaged_copy_in_the_cache_is_downloaded_again(site):
    place = local_file(head(site), setting="a.head")
    place.write_bytes(b"cut")
    assert local_file(head(site), setting="a.head").read_bytes() == DATA


def test_file_with_another_hash_is_not_kept(site):
    wrong = "0" * 64
    with pytest.raises(ClipmillError, match=rf"a\.head: .*{DIGEST}, not {wrong}") as raised:
        local_file(head(site, digest=wrong), setting="a.head")
    assert "17 bytes of text/plain" in str(raised.value)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_missing_file_error_has_the_url_and_the_command(site):
    site.status("/gone.pth", 404)
    with pytest.raises(ClipmillError, match="HTTP 404") as raised:
        local_file(head(site, "/gone.pth"), setting="a.head")
    assert f"`curl --location --output ./gone.pth {site.url('/gone.pth')}`" in str(raised.value)
    assert "--set a.head=./gone.pth" in str(raised.value)
    assert len([one for one in site.log if one.path == "/gone.pth"]) == 1


def test_unreachable_server_is_distinguished_from_a_wrong_file():
    with serve() as server:
        file = head(server)
    with pytest.raises(Unreachable):
        local_file(file, setting="a.head")


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/head.pth",
        "https://example.org/#sha256=00",
        f"https://example.org/#sha256={DIGEST}",
        "package:nowhere/x",
        "https://example.org/head.pth#sha256=xyz",
    ],
)
def test_reference_that_names_no_single_file_is_refused(text):
    with pytest.raises(ValidationError):
        DataFile.model_validate(text)


def test_packaged_file_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_file(
        DataFile.model_validate("package:stages/data/tags.txt"), setting="a.b"
    ).is_file()
