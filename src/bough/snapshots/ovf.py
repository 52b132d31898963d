"""Write an OVA for other hypervisors: a tar of a description, a manifest and vmdk disks.

The format is DMTF DSP0243 (OVF 1.1).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from bough.images.note import ExportNote, note_property
from bough.snapshots.store import SnapshotManifest
from bough.units import MIB

_CHUNK = 1 << 20
_SYSTEMS = {"x86_64": ("101", "Linux 64-Bit"), "aarch64": ("101", "Linux 64-Bit")}
_ENVELOPE = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
 <References>
{files}
 </References>
 <DiskSection>
  <Info>Disks</Info>
{disks}
 </DiskSection>
 <NetworkSection><Info>Networks</Info><Network ovf:name="nat"><Description>NAT</Description></Network></NetworkSection>
 <VirtualSystem ovf:id={name}>
  <Info>A virtual machine</Info>
  <Name>{text}</Name>
  <ProductSection ovf:class={note_class}>
   <Info>For bough, to take the machine back</Info>
   <Property ovf:key={note_key} ovf:type="string" ovf:userConfigurable="false" ovf:value={note}/>
  </ProductSection>
  <OperatingSystemSection ovf:id="{os_id}"><Info>The guest</Info><Description>{os_name}</Description></OperatingSystemSection>
  <VirtualHardwareSection>
   <Info>Hardware</Info>
   <System><vssd:ElementName>Hardware</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemIdentifier>{text}</vssd:VirtualSystemIdentifier><vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType></System>
{items}
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>
"""  # noqa: E501


def render_ovf(manifest: SnapshotManifest, sizes: list[int], note: ExportNote) -> str:
    """Return the description of the machine.

    Args:
        sizes: of the files disk0.vmdk, disk1.vmdk, ..., in bytes.
        note: by which `bough import` recognises the machine.
    """
    spec = manifest.spec
    files = [
        f'  <File ovf:id="file{n}" ovf:href="disk{n}.vmdk" ovf:size="{size}"/>'
        for n, size in enumerate(sizes)
    ]
    form = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
    disks = [
        f'  <Disk ovf:diskId="disk{n}" ovf:fileRef="file{n}" ovf:capacity="{disk.size_bytes}" '
        f'ovf:format="{form}"/>'
        for n, disk in enumerate(manifest.disks)
    ]
    items = [
        _item(1, 3, f"{spec.vcpus} virtual CPUs", VirtualQuantity=str(spec.vcpus)),
        _item(
            2,
            4,
            "Memory",
            AllocationUnits="byte * 2^20",
            VirtualQuantity=str(spec.memory // MIB),
        ),
        _item(3, 20, "SATA controller", ResourceSubType="AHCI", Address="0"),
    ]
    items += [
        _item(4 + n, 17, f"Disk {n}", HostResource=f"ovf:/disk/disk{n}", Parent="3", AddressOnParent=str(n))
        for n in range(len(sizes))
    ]
    items += [
        # Another hypervisor has none of our networks: each card gets NAT.
        _item(
            4 + len(sizes) + n,
            10,
            f"Network {n}" if n else "Network",
            ResourceSubType="E1000",
            Connection="nat",
        )
        for n in range(len(manifest.hardware.nics))
    ]
    note_class, note_key, text = (quoteattr(value) for value in note_property(note))
    os_id, os_name = _SYSTEMS.get(manifest.hardware.arch, ("1", "Other"))
    return _ENVELOPE.format(
        files="\n".join(files),
        disks="\n".join(disks),
        items="\n".join(items),
        note_class=note_class,
        note_key=note_key,
        note=text,
        name=quoteattr(manifest.machine_name),
        text=escape(manifest.machine_name),
        os_id=os_id,
        os_name=os_name,
    )


def _item(number: int, kind: int, name: str, **values: str) -> str:
    told = {"ElementName": name, "InstanceID": str(number), "ResourceType": str(kind), **values}
    # The schema requires the elements of an item in the order of names.
    inner = "".join(f"<rasd:{key}>{escape(value)}</rasd:{key}>" for key, value in sorted(told.items()))
    return f"   <Item>{inner}</Item>"


def write_ova(manifest: SnapshotManifest, disks: list[Path], note: ExportNote) -> Iterator[bytes]:
    """Yield the archive in pieces. The description comes first, as the standard requires."""
    description = render_ovf(manifest, [path.stat().st_size for path in disks], note).encode()
    name = manifest.machine_name
    digests = [f"SHA256({name}.ovf)= {hashlib.sha256(description).hexdigest()}"]
    yield from _member(f"{name}.ovf", len(description), [description])
    for number, path in enumerate(disks):
        digest = hashlib.sha256()
        yield from _member(f"disk{number}.vmdk", path.stat().st_size, _read(path, digest))
        digests.append(f"SHA256(disk{number}.vmdk)= {digest.hexdigest()}")
    told = ("\n".join(digests) + "\n").encode()
    yield from _member(f"{name}.mf", len(told), [told])
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, size: int, content: Iterator[bytes] | list[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    yield info.tobuf(tarfile.USTAR_FORMAT if size < 8 << 30 else tarfile.GNU_FORMAT)
    yield from content
    yield bytes(-size % tarfile.BLOCKSIZE)


def _read(path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
    with io.FileIO(path) as stream:
        while data := stream.read(_CHUNK):
            digest.update(data)
            yield data
