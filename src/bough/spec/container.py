"""What a container image says about its program: the `config` of the OCI image specification, as data.

The image's author chose all of it, so a value is a word for the guest and never a path or a command of the
host. The parser (images/oci/config.py) checks form and size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

#: The PATH of a container whose image names none, as Docker sets it.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Container(BaseModel):
    """The container image from which a machine's disk was made.

    Attributes:
        reference: the image's name with its transport, as it was resolved:
            "docker://docker.io/library/nginx:latest".
        digest: of the manifest for this architecture: "sha256:...".
        entrypoint, cmd: the words of ENTRYPOINT and CMD; empty: the image has none.
        env: variable -> value, in the image's order.
        user: USER as written: "", "name", "id", "name:group" or "id:id".
        workdir: WORKDIR; "": the root directory.
        stop_signal: name without SIG, or a number.
        ports: EXPOSE: "80/tcp".
        volumes: VOLUME: directories in the guest.
        healthcheck: HEALTHCHECK with the keys of a project file's healthcheck; None: the image has none.
        labels: LABEL.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    reference: str
    digest: str
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    stop_signal: str = "TERM"
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
