"""GPUs that are known by name: their memory, peak and bandwidths, as their makers' data sheets say.

    named("h100").memory                      80e9
    device_of("NVIDIA H100 80GB HBM3")        the same; None for a GPU that is not known

`flops` is dense bf16: from H100 on, NVIDIA's sheets print the double, with sparsity. `link` is both
ways together. Sources, as third-party tables quote them (read on 2026-11-29):

    A100     NVIDIA A100 Tensor Core GPU data sheet (us-nvidia-1758950-r4), SXM, 80 GB
    H100     NVIDIA H100 Tensor Core GPU data sheet and Hopper architecture white paper, SXM5
    H200     NVIDIA H200 Tensor Core GPU data sheet, SXM
    B200     NVIDIA Blackwell architecture technical brief and DGX B200 data sheet, an eighth of a DGX
    MI300X   AMD Instinct MI300X data sheet
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from salsa_dist.errors import UserError
from salsa_dist.planner.units import size


@dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        memory: bytes.
        flops: peak FLOP/s, dense bf16.
        bandwidth: peak bytes/s of its memory.
        link: peak bytes/s with the other GPUs of its node, both ways together.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float

    @property
    def received(self) -> float:
        """Bytes/s that it receives from others of its node: four fifths of one way's peak."""
        return self.link / 2 * 0.8

    def line(self) -> str:
        """What its data sheet says, for the table of a plan."""
        return (
            f"{self.name} by its data sheet: {size(self.memory)} at {self.bandwidth / 1e12:.2f} TB/s, "
            f"{self.flops / 1e12:,.0f} TFLOP/s in dense bf16, {size(self.link)}/s to its node"
        )


DEVICES = (
    Device("A100", 80e9, 312e12, 2.039e12, 600e9),
    Device("H100", 80e9, 989.4e12, 3.35e12, 900e9),
    Device("H200", 141e9, 989.4e12, 4.8e12, 900e9),
    Device("B200", 180e9, 2250e12, 8.0e12, 1800e9),
    Device("MI300X", 192e9, 1307.4e12, 5.3e12, 896e9),
)
# In the names of slower cards (a PCIe A100 computes as fast), and of parts of a card.
_SLOWER, _PART = {"PCIE", "NVL"}, "MIG"


def named(name: str) -> Device:
    """The GPU that a user names, such as `h100`.

    Raises:
        UserError: it is not known.
    """
    wanted = {"MI300": "MI300X"}.get(name.upper(), name.upper())
    found = next((device for device in DEVICES if device.name == wanted), None)
    if found is None:
        known = ", ".join(device.name for device in DEVICES)
        raise UserError(
            f"GPU {name} is not known by name ({known}): set --gpu-memory, --tflops and "
            "--node-bandwidth instead"
        )
    return found


def device_of(name: str) -> Device | None:
    """The GPU of a name that its driver gives, such as `NVIDIA H200`; None where it is not known."""
    words = set(re.split(r"[ -]", name.upper()))
    if _PART in words or ("A100" not in words and words & _SLOWER):
        return None
    return next((device for device in DEVICES if device.name in words), None)
