"""The policy side: command line, grants, content and supervision. Never imports wasmtime."""
