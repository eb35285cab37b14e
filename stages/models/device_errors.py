"""Errors after which a GPU is unusable for the process, so no other row would succeed."""

from __future__ import annotations

from clipmill.schemas.errors import ClipmillError

# Messages of CUDA and HIP, in lower case, for errors after which their manuals say that the
# process must be restarted. Running out of memory and unsupported shapes are not among them.
_SIGNS = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "not supported on global/shared address",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable",
)
_RUNTIMES = ("cuda", "hip", "cublas", "cudnn", "nccl", "acceleratorerror")


class DeviceBroken(ClipmillError):
    """A model's device is unusable in this process; another process may succeed.

    Its threads are not waited for: freeing what the device holds may kill the process.
    """

    leaves_threads = True


def raise_if_broken(error: BaseException) -> None:
    """Raises DeviceBroken if an exception means that the device is unusable."""
    said = f"{type(error).__name__}: {error}"
    text = said.lower()
    if (
        isinstance(error, RuntimeError)
        and any(sign in text for sign in _SIGNS)
        and any(runtime in text for runtime in _RUNTIMES)
    ):
        raise DeviceBroken(
            f"the GPU's context is broken, so this process can't use it any more: "
            f"{said.partition(chr(10))[0]}. Run the same command to continue: the rows of the "
            "batch are then tried one by one, and one that breaks it again becomes a failure of "
            "kind crash"
        ) from error
