"""Which proxy the environment wants for a request.

``https_proxy``, ``http_proxy`` and ``all_proxy``, all but ``http_proxy`` in capitals too.
``no_proxy`` names hosts that are reached without one: names (and all below them), addresses,
networks, or ``*``. Nothing on this machine is reached through one.
"""

import ipaddress
from collections.abc import Mapping

from runner.content.addresses import Endpoint, Malformed, parse_url
from runner.content.source import SourceError


class Proxies:
    """The proxies of an environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take note of the environment.

        Args:
            environ: The environment. An empty one means that there is no proxy.
        """
        self._environ = environ

    def of(self, endpoint: Endpoint) -> Endpoint | None:
        """Return the proxy for an endpoint, or None.

        Raises:
            SourceError: What the environment names is no HTTP proxy.
        """
        variable = "https_proxy" if endpoint.secure else "http_proxy"
        text = self._value(variable) or self._value("all_proxy")
        if endpoint.socket or not text:
            return None
        if _is_excepted(endpoint.host, endpoint.port, self._value("no_proxy")):
            return None
        try:
            proxy = parse_url(text if "://" in text else f"http://{text}")
        except Malformed as error:
            raise SourceError(f"the proxy of ${variable}: {error}", gone=True) from None
        if proxy.secure:
            raise SourceError(f"the proxy of ${variable} is to be reached by http://", gone=True)
        return proxy

    def _value(self, variable: str) -> str:
        value = self._environ.get(variable)
        # Not HTTP_PROXY: in a program that a web server starts, that is a header of a request.
        if value is None and variable != "http_proxy":
            value = self._environ.get(variable.upper())
        return value or ""


def _is_excepted(host: str, port: int, rules: str) -> bool:
    """Tell whether a host is to be reached without a proxy. This machine always is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or host.endswith(".localhost") or (address and address.is_loopback):
        return True
    for rule in rules.replace(",", " ").lower().split():
        name = rule.removesuffix(f":{port}").lstrip("*").lstrip(".")
        if rule == "*" or host == name or (name and host.endswith(f".{name}")):
            return True
        if address is not None and "/" in rule:
            try:
                if address in ipaddress.ip_network(rule, strict=False):
                    return True
            except ValueError:
                continue
    return False
