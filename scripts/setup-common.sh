# shellcheck shell=bash
# What scripts/install, scripts/test and scripts/build-cells share; sourced, never run.
# The caller has `set -euo pipefail` and has set $repo to the root of the tree.

: "${repo:?set by the script that sources this file}"

# The system's interpreter, not whatever comes first on PATH: one under pyenv or in somebody's
# home directory cannot be started by the other accounts that ww drops to.
system_python=/usr/bin/python3
venv=$repo/.venv
venv_python=$venv/bin/python

# A tight umask would make a virtual environment that only its maker can use.
umask 022
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# as_root COMMAND...: run it with root's rights, through sudo where that is needed.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

can_be_root() {
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null 2>&1
}

# apt_install PACKAGE...: install the ones that are missing; says nothing when none is.
apt_install() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null 2>&1; then
        say "this is neither Debian nor Ubuntu: going on without checking for the likes of: $*"
        return 0
    fi
    for package in "$@"; do
        # Status and not `dpkg -s`: a package that was removed but not purged still has an entry.
        # shellcheck disable=SC2016 # the ${...} is dpkg-query's own
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    can_be_root || die "these packages are missing, and there is neither root nor sudo to install" \
        "them: ${missing[*]} (as root: apt-get install ${missing[*]})"
    say "installing with apt: ${missing[*]}"
    as_root apt-get update -qq || die "apt-get update failed"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# What decides whether an installation is still the right one. The path counts because the
# console scripts of a virtual environment hold it.
setup_key() {
    {
        printf '%s\n' "$venv"
        "$system_python" -VV
        cat -- "$repo/pyproject.toml"
    } | sha256sum | cut -d ' ' -f 1
}

stamp_is_good() { # NAME
    [ "$(cat -- "$venv/.setup-$1" 2>/dev/null)" = "$(setup_key)" ]
}

venv_is_good() {
    local first
    # A moved or copied tree: bin/python works, the console scripts start another tree's.
    read -r first 2>/dev/null <"$venv/bin/pip" || return 1
    [[ $first == "#!$venv/"* ]] || return 1
    # The interpreter was replaced under it (a distribution upgrade), or pip is gone.
    "$venv_python" -I - "$venv" "$("$system_python" -V)" >/dev/null 2>&1 <<'PY'
import pip, platform, os, sys
same_place = os.path.samefile(sys.prefix, sys.argv[1])
sys.exit(not (same_place and "Python " + platform.python_version() == sys.argv[2]))
PY
}

# A stamp says what was installed once; this says that it is there now, with what is built in C
# really loading, and that `sandbox` and `runner` are this tree's: distributions exist that bring
# a top-level package of the name `sandbox`, and site-packages comes before an editable install.
packages_are_good() {
    "$venv_python" -I - "$repo" 2>/dev/null <<'PY'
import importlib.util, os, sys
import prctl, wasmtime
for name in ("click", "pyroute2", "sexpdata"):
    if importlib.util.find_spec(name) is None:
        sys.exit(1)
for name in ("runner", "sandbox"):
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(1)
    if not os.path.samefile(os.path.dirname(spec.origin), os.path.join(sys.argv[1], name)):
        sys.exit(1)
PY
}

need_writable_venv() {
    if [ -e "$venv" ] && ! [ -w "$venv" ]; then
        die "$venv belongs to $(stat -c %U -- "$venv"); run this as that account, or in a clone" \
            "of your own"
    fi
}

make_venv() {
    need_writable_venv
    say "making the virtual environment $venv"
    rm -rf -- "$venv"
    "$system_python" -m venv "$venv" || die "could not make $venv"
    # The pip of Debian 12 and Ubuntu 24.04 writes a `ww` that imports `re`: 5 ms of each start.
    "$venv_python" -m pip install --quiet --upgrade "pip>=25.1" ||
        die "pip could not update itself (its message is above)"
}

# pip_install NAME SPEC: `pip install -e SPEC`, unless the stamp says that it was done.
pip_install() {
    if stamp_is_good "$1"; then
        return 0
    fi
    need_writable_venv
    say "installing $2 into $venv"
    # --use-pep517: python-prctl has no wheel and no pyproject.toml; without this an old pip
    # builds it by the deprecated `setup.py install`. editable_mode=compat: the tree's path in a
    # .pth file; the other form installs an import hook that costs every start of ww 15 ms.
    (cd -- "$repo" && "$venv_python" -m pip install --quiet --use-pep517 \
        --config-settings editable_mode=compat --editable "$2") ||
        die "pip could not install $2 (its message is above)"
    setup_key >"$venv/.setup-$1"
}

# install_ww: everything that `ww` needs to run. Quick when there is nothing to do.
install_ww() {
    # gcc, the headers of Python and libcap: python-prctl is built from source. libseccomp2: the
    # seccomp filters are compiled with it. ca-certificates: pip's connections.
    apt_install python3 python3-venv python3-dev gcc libc6-dev libcap-dev libseccomp2 \
        ca-certificates
    [ -x "$system_python" ] || die "there is no $system_python"
    "$system_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$system_python is $("$system_python" -V 2>&1); ww needs Python 3.11 or newer" \
            "(Debian 12, Ubuntu 24.04 or later have it)"

    venv_is_good || make_venv
    pip_install run .
    if ! packages_are_good; then
        say "$venv is damaged, or a package in it hides one of ww's: starting afresh"
        make_venv
        pip_install run .
        packages_are_good || die "ww's packages cannot be imported after a fresh installation;" \
            "try: $venv_python -c 'import prctl, wasmtime, runner, sandbox'"
    fi
}

# install_dev: what the tests and builds of this tree need on top, in the same environment.
install_dev() {
    pip_install dev '.[dev]'
}

# Zig keeps what it compiles (a C library for each target, 40 s the first time) under the tree,
# so that a clone leaves nothing in anybody's home directory.
export ZIG_GLOBAL_CACHE_DIR=$repo/build/zig/global ZIG_LOCAL_CACHE_DIR=$repo/build/zig/local

# The cells that other projects publish. Their packages pin old engines and one of them brings a top-level
# package called `sandbox`, so they are unpacked beside the environment and never installed into it.
install_test_packages() {
    local list=$repo/tests/packages.txt target=$repo/build/test-packages key
    key=$(sha256sum -- "$list" | cut -d ' ' -f 1)
    [ "$(cat -- "$target/.setup" 2>/dev/null)" != "$key" ] || return 0
    say "unpacking the packages of tests/packages.txt into $target"
    rm -rf -- "$target" "$target.new"
    # -qq: two of them have a folder `bin`, about which pip warns; nothing in the second one is used.
    "$venv_python" -m pip install -qq --no-deps --target "$target.new" -r "$list" ||
        die "pip could not unpack the packages of tests/packages.txt"
    printf '%s\n' "$key" >"$target.new/.setup"
    mv -- "$target.new" "$target"
}
