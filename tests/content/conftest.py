"""The fixtures of the tests of content."""

from tests.content.peers import gateway, kubo, rpc, tree

__all__ = ["gateway", "kubo", "rpc", "tree"]
