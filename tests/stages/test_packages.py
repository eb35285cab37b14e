"""Weights in installed packages: found there, and refused if they are others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.extras import MissingExtra
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.loading import local_folder
from clipmill.stages.references import DataFile, ModelReference, folder_sha256

OTHER = "0" * 64


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a file and a model's folder."""
    folder = tmp_path / "some_weights" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder.parent / "head.onnx").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.parent


def test_a_file_in_a_package_is_found_and_known_by_its_checksum(package):
    digest = hashlib.sha256(b"weights").hexdigest()
    file = DataFile.model_validate(f"package:some_weights/head.onnx#sha256={digest}")
    assert local_file(file, setting="a.b") == package / "head.onnx"
    assert file.identity() == DataFile(path=str(package / "head.onnx")).identity()
    assert DataFile.model_validate(file.model_dump()) == file
    assert file.name == "head.onnx"


def test_a_folder_in_a_package_is_found_and_known_by_its_checksum(package):
    digest = folder_sha256(package / "model")
    model = ModelReference.model_validate(f"package:some_weights/model#sha256={digest}")
    assert local_folder(model, setting="a.b") == package / "model"
    assert model.identity() == ModelReference(folder=str(package / "model")).identity()
    assert ModelReference.model_validate(model.model_dump()) == model


@pytest.mark.parametrize(("kind", "path"), [(DataFile, "head.onnx"), (ModelReference, "model")])
def test_other_weights_are_refused_with_both_checksums(package, kind, path):
    reference = kind.model_validate(f"package:some_weights/{path}#sha256={OTHER}")
    find = local_file if kind is DataFile else local_folder
    with pytest.raises(ClipmillError) as raised:
        find(reference, setting="score_x.weights")
    said = str(raised.value)
    found = folder_sha256(package / path) if kind is ModelReference else None
    found = found or hashlib.sha256(b"weights").hexdigest()
    assert said.startswith("score_x.weights: ")
    assert OTHER in said
    assert f"--set score_x.weights='package:some_weights/{path}#sha256={found}'" in said


def test_a_package_that_is_absent_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    text = f"package:rapidocr/models/det.onnx#sha256={OTHER}"
    for find, kind in ((local_file, DataFile), (local_folder, ModelReference)):
        reference = kind.model_validate(text)
        assert reference.identity() == f"sha256:{OTHER}"
        with pytest.raises(MissingExtra, match=r"^a\.b: .*rapidocr.*clipmill\[signals\]"):
            find(reference, setting="a.b")


def test_a_package_without_the_file_is_told_its_version():
    reference = DataFile.model_validate(f"package:numpy/models/det.onnx#sha256={OTHER}")
    with pytest.raises(UsageError, match=rf"numpy {np.__version__} has no models/det\.onnx"):
        local_file(reference, setting="a.b")


@pytest.mark.parametrize(
    "text",
    [
        "package:some_weights#sha256=" + OTHER,
        "package:some_weights/x#sha256=12",
        "package:some_weights/x#sha256=",
        "package:some_weights/../x#sha256=" + OTHER,
        "package:some_weights/x#md5=12",
    ],
)
def test_a_reference_that_pins_nothing_is_refused(text):
    for kind in (DataFile, ModelReference):
        with pytest.raises(ValueError, match="expected package:NAME/path#sha256="):
            kind.model_validate(text)
