"""What may be the name of something in a cluster, or of a host."""

import re
from ipaddress import ip_address

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def is_label(name: str) -> bool:
    """A DNS label, as a namespace's name is one."""
    return len(name) <= 63 and bool(_LABEL.fullmatch(name))


def is_subdomain(name: str) -> bool:
    """A DNS subdomain, as a Deployment's name is one; Kubernetes bounds the whole, not its labels."""
    return len(name) <= 253 and all(_LABEL.fullmatch(part) for part in name.split("."))


def is_host(name: str) -> bool:
    """An IP address, or DNS labels, the last of which is no number: with one it would be an address."""
    try:
        return bool(ip_address(name))
    except ValueError:
        labels = name.removesuffix(".").split(".")
        return all(map(is_label, labels)) and not labels[-1].isdigit()
