"""The spec of a machine: data, defaults, validation, TOML. Pure, apart from reading a spec file.

    load_toml (toml.py) -> merge with flags -> parse_spec (parse.py) -> MachineSpec (model.py)
    -> check_against_host (host.py)

Names are imported at first use: the command line reads TOML and does not need pydantic.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bough.spec.host import HostLimits as HostLimits
    from bough.spec.host import check_against_host as check_against_host
    from bough.spec.lock import PackageLock as PackageLock
    from bough.spec.lock import parse_lock as parse_lock
    from bough.spec.model import DiskSpec as DiskSpec
    from bough.spec.model import FileSpec as FileSpec
    from bough.spec.model import MachineSpec as MachineSpec
    from bough.spec.model import MountSpec as MountSpec
    from bough.spec.model import NicSpec as NicSpec
    from bough.spec.model import PortSpec as PortSpec
    from bough.spec.model import UserSpec as UserSpec
    from bough.spec.parse import parse_mount as parse_mount
    from bough.spec.parse import parse_spec as parse_spec
    from bough.spec.parse import spec_defaults as spec_defaults
    from bough.spec.parse import spec_schema as spec_schema
    from bough.spec.recipe import PartitionSpec as PartitionSpec
    from bough.spec.recipe import RecipeSpec as RecipeSpec
    from bough.spec.recipe import SourceSpec as SourceSpec
    from bough.spec.recipe import parse_recipe as parse_recipe
    from bough.spec.toml import load_toml as load_toml
    from bough.spec.toml import merge as merge
    from bough.spec.toml import render_lock as render_lock
    from bough.spec.values import check_name as check_name
    from bough.spec.values import parse_architecture as parse_architecture
    from bough.spec.values import parse_name as parse_name

_HOME_OF = {
    "check_name": "values",
    "parse_architecture": "values",
    "parse_name": "values",
    "HostLimits": "host",
    "check_against_host": "host",
    "PackageLock": "lock",
    "parse_lock": "lock",
    "DiskSpec": "model",
    "FileSpec": "model",
    "MachineSpec": "model",
    "MountSpec": "model",
    "NicSpec": "model",
    "PortSpec": "model",
    "UserSpec": "model",
    "parse_mount": "parse",
    "parse_spec": "parse",
    "spec_defaults": "parse",
    "spec_schema": "parse",
    "RecipeSpec": "recipe",
    "PartitionSpec": "recipe",
    "SourceSpec": "recipe",
    "parse_recipe": "recipe",
    "load_toml": "toml",
    "merge": "toml",
    "render_lock": "toml",
}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        from importlib import import_module

        return getattr(import_module(f"bough.spec.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'bough.spec' has no attribute {name!r}")
