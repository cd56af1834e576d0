"""Which devices are known: one file each in configs/devices/."""

from __future__ import annotations

from collections.abc import Sequence

from tfgen import errors, workdir
from tfgen.cost.budget import Budget


def known() -> list[str]:
    """Names of the devices that have a latency table."""
    return sorted(p.stem for p in (workdir.package_root() / "configs" / "devices").glob("*.json"))


def check(budgets: Sequence[Budget]) -> None:
    """Raises UsageError for a budget on a device that nobody profiled."""
    for budget in budgets:
        if budget.device is not None and budget.device not in known():
            raise errors.UsageError(
                f"unknown device {budget.device!r}; known: {', '.join(known()) or 'none yet'}"
            )
