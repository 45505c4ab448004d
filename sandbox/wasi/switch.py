"""The two WebAssembly modules that route each WASI call to who serves it.

The switch keeps a map from the cell's descriptor numbers to who serves them, 32 bits each, in a
memory of its own that the cell cannot reach: 0 is closed; ``n`` above 0 is wasmtime's descriptor
``n - 1``; ``n`` below 0 is slot ``-1 - n`` of this host. All numbering happens here: a function
that makes a descriptor returns its slot or wasmtime's number, and the switch gives it the lowest
free number of the cell. So numbers of different origin can neither collide nor be confused.

The switch exports the cell's memory as its own, because wasmtime's WASI looks for ``memory`` in
the instance that calls it.
"""

from sandbox.wasi import abi

# Numbers that the map has room for; grants end below this too.
MAP_ENTRIES = 65536
_MAP_PAGES = MAP_ENTRIES * 4 // 65536
# The shim's table has one place for each function.
TABLE_SIZE = len(abi.FUNCTIONS)
_TYPES = {"i": "i32", "I": "i64"}
# For functions whose first parameter is one of so many: wasmtime ends the cell over another.
_ENUMERATIONS = {"clock_res_get": 4, "clock_time_get": 4}
# For functions that make a descriptor: the parameter that points to where its number goes.
_RESULT_POINTER = {"path_open": 8, "sock_accept": 2}


def _signature(name: str, parameters: str | None = None) -> str:
    kinds = abi.FUNCTIONS[name] if parameters is None else parameters
    text = " ".join(f"(param {_TYPES[kind]})" for kind in kinds)
    return text if name == "proc_exit" else f"{text} (result i32)"


def _arguments(name: str, *, start: int = 0) -> str:
    return " ".join(f"(local.get {i})" for i in range(start, len(abi.FUNCTIONS[name])))


def shim() -> str:
    """Return the text of the module that the cell imports: every function, through a table.

    The table is imported, because whatever the shim exports, a cell can import.
    """
    lines = [f'(module (import "host" "table" (table {TABLE_SIZE} {TABLE_SIZE} funcref))']
    for index, name in enumerate(abi.FUNCTIONS):
        signature = _signature(name)
        lines.append(
            f'(func (export "{name}") {signature} {_arguments(name)} '
            f"(call_indirect {signature} (i32.const {index})))"
        )
    return "\n".join([*lines, ")"])


def host_functions() -> dict[str, str]:
    """Return the functions the switch imports from this host, with their parameters.

    They are those of preview 1 with slots in place of descriptors. Functions on directories get
    the map's entries instead, because each may be served by someone else. poll_oneoff gets the
    time on the cell's monotonic clock first.
    """
    names = (*abi.BY_DESCRIPTOR, *abi.BY_DIRECTORIES, *abi.ALWAYS_HOST)
    plain = {name: abi.FUNCTIONS[name] for name in names}
    return {**plain, "poll_oneoff": "I" + plain["poll_oneoff"]}


def switch() -> str:
    """Return the text of the module that fills the shim's table."""
    served = [name for name in abi.FUNCTIONS if name not in abi.ALWAYS_HOST]
    wasmtime = [n for n in served if n != "fd_renumber"]
    lines = ["(module"]
    lines += [f'(import "{abi.MODULE}" "{n}" (func $wasi_{n} {_signature(n)}))' for n in wasmtime]
    lines += [
        f'(import "host" "{n}" (func $host_{n} {_signature(n, kinds)}))'
        for n, kinds in host_functions().items()
    ]
    lines += [
        f'(import "host" "table" (table {TABLE_SIZE} {TABLE_SIZE} funcref))',
        '(import "cell" "memory" (memory $cell 0))',
        f'(memory $map (export "map") {_MAP_PAGES} {_MAP_PAGES})',
        '(export "memory" (memory $cell))',
        _LOOKUP,
        _STORE,
        _ALLOCATE,
        _DISCARD,
    ]
    for name in abi.FUNCTIONS:
        lines.append(
            f"(func ${name} {_signature(name)} (local $m i32) (local $r i32) (local $t i64)"
        )
        lines.append(_body(name))
        lines.append(")")
    lines.append(f"(elem (i32.const 0) func {' '.join('$' + name for name in abi.FUNCTIONS)})")
    return "\n".join([*lines, ")"])


def _body(name: str) -> str:
    if name == "poll_oneoff":
        return _POLL
    if name in _ENUMERATIONS:
        return f"""
          (if (i32.ge_u (local.get 0) (i32.const {_ENUMERATIONS[name]}))
            (then (return (i32.const {abi.EINVAL}))))
          (call $wasi_{name} {_arguments(name)})"""
    if name in abi.ALWAYS_HOST:
        return f"(call $host_{name} {_arguments(name)})"
    if name == "fd_renumber":
        return _RENUMBER
    if name in abi.BY_DIRECTORIES:
        return _directories_body(name)
    if name in abi.BY_DESCRIPTOR:
        return _descriptor_body(name)
    return f"(call $wasi_{name} {_arguments(name)})"


def _descriptor_body(name: str) -> str:
    """Route by the first parameter; 0 in the map is EBADF without asking anybody."""
    rest = _arguments(name, start=1)
    host = f"(call $host_{name} (i32.xor (local.get $m) (i32.const -1)) {rest})"
    wasi = f"(call $wasi_{name} (i32.sub (local.get $m) (i32.const 1)) {rest})"
    if name in _RESULT_POINTER:
        pointer = f"(local.get {_RESULT_POINTER[name]})"
        return f"""
          (local.set $m (call $lookup (local.get 0)))
          (if (i32.eqz (local.get $m)) (then (return (i32.const {abi.EBADF}))))
          (if (i32.lt_s (local.get $m) (i32.const 0))
            (then (local.set $r {host})) (else (local.set $r {wasi})))
          (if (local.get $r) (then (return (local.get $r))))
          (local.set $m (if (result i32) (i32.lt_s (local.get $m) (i32.const 0))
            (then (i32.xor (i32.load $cell {pointer}) (i32.const -1)))
            (else (i32.add (i32.load $cell {pointer}) (i32.const 1)))))
          (local.set $r (call $allocate (local.get $m)))
          (if (i32.lt_s (local.get $r) (i32.const 0))
            (then (drop (call $discard (local.get $m))) (return (i32.const {abi.EMFILE}))))
          (i32.store $cell {pointer} (local.get $r))
          (i32.const 0)"""
    after = ""
    if name == "fd_close":
        # Whatever close(2) says, the number is free afterwards.
        after = "(call $store (local.get 0) (i32.const 0))"
    return f"""
      (local.set $m (call $lookup (local.get 0)))
      (if (i32.eqz (local.get $m)) (then (return (i32.const {abi.EBADF}))))
      (local.set $r (if (result i32) (i32.lt_s (local.get $m) (i32.const 0))
        (then {host}) (else {wasi})))
      {after}
      (local.get $r)"""


def _directories_body(name: str) -> str:
    """Route by every directory: to wasmtime if it serves them all, else to the host."""
    positions = abi.BY_DIRECTORIES[name]
    lookups = "\n".join(
        f"""(if (i32.eqz (call $lookup (local.get {p})))
              (then (return (i32.const {abi.EBADF}))))
            (local.set $m (i32.or (local.get $m)
              (i32.shr_u (call $lookup (local.get {p})) (i32.const 31))))"""
        for p in positions
    )

    def arguments(directory: str) -> str:
        count = len(abi.FUNCTIONS[name])
        plain = [f"(local.get {i})" for i in range(count)]
        for p in positions:
            plain[p] = directory.format(f"(call $lookup (local.get {p}))")
        return " ".join(plain)

    return f"""
      {lookups}
      (if (result i32) (local.get $m)
        (then (call $host_{name} {arguments("{}")}))
        (else (call $wasi_{name} {arguments("(i32.sub {} (i32.const 1))")})))"""


_LOOKUP = f"""
(func $lookup (param $fd i32) (result i32)
  (if (result i32) (i32.ge_u (local.get $fd) (i32.const {MAP_ENTRIES}))
    (then (i32.const 0))
    (else (i32.load $map (i32.shl (local.get $fd) (i32.const 2))))))"""

_STORE = """
(func $store (param $fd i32) (param $entry i32)
  (i32.store $map (i32.shl (local.get $fd) (i32.const 2)) (local.get $entry)))"""

# The lowest free number, as POSIX open(2) does; -1 when all are taken.
_ALLOCATE = f"""
(func $allocate (param $entry i32) (result i32) (local $fd i32)
  (loop $next
    (if (i32.eqz (call $lookup (local.get $fd)))
      (then (call $store (local.get $fd) (local.get $entry)) (return (local.get $fd))))
    (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $fd) (i32.const {MAP_ENTRIES}))))
  (i32.const -1))"""

# Close what an entry stands for, whoever serves it.
_DISCARD = """
(func $discard (param $entry i32) (result i32)
  (if (result i32) (i32.lt_s (local.get $entry) (i32.const 0))
    (then (call $host_fd_close (i32.xor (local.get $entry) (i32.const -1))))
    (else (call $wasi_fd_close (i32.sub (local.get $entry) (i32.const 1))))))"""

# Both numbers must be open: the interface has no way to make one up (fd_renumber in the witx).
_RENUMBER = f"""
  (local.set $m (call $lookup (local.get 0)))
  (if (i32.or (i32.eqz (local.get $m)) (i32.eqz (call $lookup (local.get 1))))
    (then (return (i32.const {abi.EBADF}))))
  (if (i32.ne (local.get 0) (local.get 1))
    (then
      (drop (call $discard (call $lookup (local.get 1))))
      (call $store (local.get 1) (local.get $m))
      (call $store (local.get 0) (i32.const 0))))
  (i32.const 0)"""


# The cell's monotonic clock is wasmtime's, which begins when the cell does, so an absolute time on
# it means nothing outside. Its present time is fetched through 8 aligned bytes of the room for
# events, which are put back: the room may overlap with the subscriptions.
_POLL = f"""
  (local.set $r (i32.and (i32.add (local.get 1) (i32.const 7)) (i32.const -8)))
  (if (i64.le_u (i64.add (i64.extend_i32_u (local.get $r)) (i64.const 8))
      (i64.shl (i64.extend_i32_u (memory.size $cell)) (i64.const 16)))
    (then
      (local.set $t (i64.load $cell (local.get $r)))
      (drop (call $wasi_clock_time_get
        (i32.const {abi.CLOCK_MONOTONIC}) (i64.const 1) (local.get $r)))
      (i64.load $cell (local.get $r))
      (i64.store $cell (local.get $r) (local.get $t))
      (local.set $t)))
  (call $host_poll_oneoff (local.get $t) {_arguments("poll_oneoff")})"""
