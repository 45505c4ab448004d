"""The WASI host: runs a cell with its granted descriptors at their own numbers.

Three WebAssembly instances share one store. The *shim* is what the cell imports: each preview 1
function is a jump through a table. The *switch* fills that table; for each call on a descriptor it
looks up, in a map of its own memory, which of this host's that is. So a number means the same to
the cell as to whoever granted it, and a number that was not granted reaches nobody. wasmtime's own
WASI serves what is about no descriptor, and nothing else of it can be reached.
"""
