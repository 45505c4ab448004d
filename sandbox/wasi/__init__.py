"""The WASI host: runs a cell with its granted descriptors at their own numbers.

Three WebAssembly instances share one store. The *shim* is what the cell imports: each preview 1
function is a jump through a table. The *switch* fills that table; for each call it looks up, in
a map of its own memory, who serves the descriptor: this host (granted descriptors and stdio) or
wasmtime's implementation, each under its own numbers. So a number means the same to the cell as
to whoever granted it, and a number that was not granted reaches nobody.
"""
