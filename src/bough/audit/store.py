"""`bough doctor --store`: check the whole home."""

from __future__ import annotations

from typing import Any

from bough.audit.disks import Hold, audit_disks, audit_image_content
from bough.audit.files import Look, audit_files
from bough.audit.finding import Finding
from bough.audit.repair import repair as repair_findings
from bough.progress import Progress, Report, ignore_progress


async def audit_store(
    look: Look, hold: Hold, *, repair: bool = False, report: Report = ignore_progress
) -> dict[str, Any]:
    """Check the whole home, and with `repair` make the safe repairs. The result is JSON-able.

    Args:
        hold: prevents the start of a machine; raises Conflict for a machine that runs or is busy.
    """
    report(Progress("looking at every file"))
    findings = audit_files(look)
    if repair:
        findings = repair_findings(findings, look.home)
    damaged = {finding.path.parent.name for finding in findings if finding.kind == "image-damaged"}
    report(Progress("comparing images with their digests"))
    for digest, manifest in look.images.items():
        if digest not in damaged and look.home.image(digest).disk.is_file():
            findings += await audit_image_content(manifest, look.home)
    for number, record in enumerate(look.records.values()):
        report(Progress("checking disks", fraction=number / len(look.records), detail=record.name))
        found, skipped = await audit_disks(record, look.home, hold, look.jail, repair=repair)
        findings += found
        look.skipped += skipped
    return {
        "images": len(look.images),
        "machines": len(look.records),
        "findings": [finding.to_dict() for finding in findings],
        "skipped": [each.to_dict() for each in look.skipped],
        "clean": not any(_remains(finding) for finding in findings),
    }


def _remains(finding: Finding) -> bool:
    return finding.repaired is None and not finding.harmless
