"""torchvision imports in every process; the dtype is one that the machine supports natively."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from clipmill.stages.models.torch_setup import (
    best_device,
    cpu_has_bf16,
    default_dtype,
    has_bf16_flag,
    prepare_torch,
)


def _run(code: str) -> str:
    # What `prepare_torch` sets, a program that is started here would inherit.
    environment = {name: os.environ[name] for name in os.environ if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # all processes of tests with models import them, too
def test_new_process_imports_torchvision_and_open_clip() -> None:
    """Called twice, like two stages of one worker."""
    out = _run(
        "from clipmill.stages.models.torch_setup import prepare_torch\n"
        "prepare_torch(); prepare_torch()\n"
        "import torchvision.transforms, open_clip\n"
        "print(len(open_clip.list_models()) > 10)"
    )
    assert out.strip() == "True"


@pytest.mark.slow  # it needs a process that has not allocated anything
@pytest.mark.skipif(sys.platform != "linux", reason="torch uses huge pages on Linux")
def test_large_tensors_may_lie_in_huge_pages() -> None:
    code = "import torch\nprint(all(torch.empty(9 << 20).data_ptr() % 4096 == 0 for _ in '123'))"
    prepared = "from clipmill.stages.models.torch_setup import prepare_torch\nprepare_torch()\n"
    assert _run(prepared + code).strip() == "True"
    assert _run(code).strip() == "False"  # as torch is otherwise


def test_only_the_known_error_is_repaired(tmp_path) -> None:
    """A package that fails like the mismatched wheel is imported again; other errors are raised."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\nimport torch\nfrom . import half\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    raise RuntimeError(sys.said)\n"
        "whole = True\n"
    )
    (package / "half.py").write_text("")
    out = _run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from clipmill.stages.models.torch_setup import prepare_torch\n"
        "for sys.said in ('something else is wrong', 'operator torchvision::nms does not exist'):\n"
        "    try:\n        prepare_torch()\n"
        "    except RuntimeError as error:\n        print(error)\n"
        "import torchvision; print(torchvision.whole)"
    )
    assert out.splitlines() == ["something else is wrong", "True"]


def test_working_torchvision_is_left_alone(tmp_path) -> None:
    (tmp_path / "torchvision.py").write_text("whole = True\n")
    out = _run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from clipmill.stages.models import torch_setup\n"
        "torch_setup.prepare_torch()\n"
        "import torchvision; print(torchvision.whole, torch_setup._library, 'torch' in sys.modules)"
    )
    assert out.split() == ["True", "None", "False"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("model name : a CPU with bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_cpu_flags(text: str, expected: bool) -> None:
    assert has_bf16_flag(text) is expected


def test_dtype_on_this_machine() -> None:
    prepare_torch()
    assert best_device().type in ("cpu", "cuda")
    expected = torch.bfloat16 if cpu_has_bf16() else torch.float32
    assert default_dtype(torch.device("cpu")) is expected
    assert default_dtype(torch.device("meta")) is torch.float32
