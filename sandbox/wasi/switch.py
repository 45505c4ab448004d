"""The two WebAssembly modules that route each WASI call to who serves it.

Every call on a descriptor is this host's. The switch keeps a map from the cell's descriptor numbers
to slots of the host, 32 bits each, in a memory of its own that the cell cannot reach: 0 is closed,
and ``n`` is slot ``n - 1``. All numbering happens here: a function that makes a descriptor returns
its slot, and the switch gives it the lowest free number of the cell. Only what is about no
descriptor goes to wasmtime's own WASI, of which nothing else is imported.

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

    They are those of preview 1 with slots in place of descriptors; poll_oneoff, which finds its
    descriptors in memory, gets the time on the cell's monotonic clock first.
    """
    plain = {name: abi.FUNCTIONS[name] for name in (*abi.DESCRIPTORS, *abi.HOST)}
    return {**plain, "poll_oneoff": "I" + plain["poll_oneoff"]}


def switch() -> str:
    """Return the text of the module that fills the shim's table."""
    host = host_functions()
    engine = [name for name in abi.FUNCTIONS if name not in host and name != "fd_renumber"]
    lines = ["(module"]
    lines += [f'(import "{abi.MODULE}" "{n}" (func $wasi_{n} {_signature(n)}))' for n in engine]
    lines += [
        f'(import "host" "{n}" (func $host_{n} {_signature(n, kinds)}))'
        for n, kinds in host.items()
    ]
    lines += [
        f'(import "host" "table" (table {TABLE_SIZE} {TABLE_SIZE} funcref))',
        '(import "cell" "memory" (memory $cell 0))',
        f'(memory $map (export "map") {_MAP_PAGES} {_MAP_PAGES})',
        '(export "memory" (memory $cell))',
        _SLOT,
        _STORE,
        _ALLOCATE,
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
    if name == "fd_renumber":
        return _RENUMBER
    if name in abi.DESCRIPTORS:
        return _descriptor_body(name)
    if name in abi.HOST:
        return f"(call $host_{name} {_arguments(name)})"
    call = f"(call $wasi_{name} {_arguments(name)})"
    if name in _ENUMERATIONS:
        return f"""
          (if (i32.ge_u (local.get 0) (i32.const {_ENUMERATIONS[name]}))
            (then (return (i32.const {abi.EINVAL}))))
          {call}"""
    return call


def _descriptor_body(name: str) -> str:
    """Put slots in place of numbers, and call the host; what is closed is EBADF without it."""
    slots = "\n".join(
        f"""(local.set {p} (call $slot (local.get {p})))
            (if (i32.lt_s (local.get {p}) (i32.const 0)) (then (return (i32.const {abi.EBADF}))))"""
        for p in abi.DESCRIPTORS[name]
    )
    call = f"(call $host_{name} {_arguments(name)})"
    if name in _RESULT_POINTER:
        made = f"(i32.load $cell (local.get {_RESULT_POINTER[name]}))"
        return f"""
          {slots}
          (local.set $r {call})
          (if (local.get $r) (then (return (local.get $r))))
          (local.set $r (call $allocate {made}))
          (if (i32.lt_s (local.get $r) (i32.const 0))
            (then (drop (call $host_fd_close {made})) (return (i32.const {abi.EMFILE}))))
          (i32.store $cell (local.get {_RESULT_POINTER[name]}) (local.get $r))
          (i32.const 0)"""
    if name == "fd_close":
        # Whatever close(2) says, the number is free afterwards.
        return f"""
          (local.set $m (local.get 0))
          {slots}
          (local.set $r {call})
          (call $store (local.get $m) (i32.const -1))
          (local.get $r)"""
    return f"{slots}\n{call}"


# The slot of a number, or -1 if it is closed or there is no such number.
_SLOT = f"""
(func $slot (param $fd i32) (result i32)
  (if (result i32) (i32.ge_u (local.get $fd) (i32.const {MAP_ENTRIES}))
    (then (i32.const -1))
    (else (i32.sub (i32.load $map (i32.shl (local.get $fd) (i32.const 2))) (i32.const 1)))))"""

_STORE = """
(func $store (param $fd i32) (param $slot i32)
  (i32.store $map
    (i32.shl (local.get $fd) (i32.const 2)) (i32.add (local.get $slot) (i32.const 1))))"""

# The lowest free number, as POSIX open(2) does; -1 when all are taken.
_ALLOCATE = f"""
(func $allocate (param $slot i32) (result i32) (local $fd i32)
  (loop $next
    (if (i32.lt_s (call $slot (local.get $fd)) (i32.const 0))
      (then (call $store (local.get $fd) (local.get $slot)) (return (local.get $fd))))
    (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
    (br_if $next (i32.lt_u (local.get $fd) (i32.const {MAP_ENTRIES}))))
  (i32.const -1))"""

# Both numbers must be open: the interface has no way to make one up (fd_renumber in the witx).
_RENUMBER = f"""
  (local.set $m (call $slot (local.get 0)))
  (local.set $r (call $slot (local.get 1)))
  (if (i32.lt_s (i32.or (local.get $m) (local.get $r)) (i32.const 0))
    (then (return (i32.const {abi.EBADF}))))
  (if (i32.ne (local.get 0) (local.get 1))
    (then
      (drop (call $host_fd_close (local.get $r)))
      (call $store (local.get 1) (local.get $m))
      (call $store (local.get 0) (i32.const -1))))
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
