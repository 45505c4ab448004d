# shellcheck shell=bash disable=SC2034 # what is set here is used where this is sourced
# What scripts/vm/run, build and box share; sourced, never run. The caller has set $repo, and has sourced
# scripts/setup-common.sh.

: "${repo:?set by the script that sources this file}"

# Where mke2fs and sfdisk are, which do without root here; a user's PATH on Debian has neither.
PATH=$PATH:/usr/sbin:/sbin

# All that these scripts make is below here.
vm=$repo/build/vm
# Where the tree and the parts that are made for it are in the machine; guest/init puts them there.
guest_tree=/srv/ww
guest_parts=/opt/ww

# print_help SCRIPT: the comment at its top is the help.
print_help() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$1"
}

need_release() { # NAME
    case $1 in
        bookworm | trixie) ;;
        *) die "unknown release: $1 (there are bookworm and trixie)" ;;
    esac
}

need_amd64() {
    [ "$(uname -m)" = x86_64 ] || die "the test machine is made for x86-64, and this is $(uname -m)"
}

# need_value OPTION "$#": that an option's value was given.
need_value() {
    [ "$2" -ge 2 ] || die "$1 needs a value (see --help)"
}

# make_part FILE KEY COMMAND: have COMMAND make a part of the machine anew, if what it is made from has changed.
# One that was not made to its end has no key, and is made again.
make_part() {
    if [ -e "$1" ] && [ "$(cat -- "$1.key" 2>/dev/null)" = "$2" ]; then
        return 0
    fi
    rm -f -- "$1.key"
    "$3"
    printf '%s\n' "$2" >"$1.key"
}

# exec_as_root COMMAND...: as as_root, in place of the shell that calls it.
exec_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        exec "$@"
    fi
    exec sudo "$@"
}

# interruptible COMMAND...: run a program (or exec_as_root) that takes its time, so that it ends with this script.
# bash itself lets what it waits for go on, and looks at no signal until that has ended.
interruptible() {
    "$@" &
    wait "$!"
}

# end_with CODE: what a signal does.
end_with() {
    local child
    trap '' INT TERM HUP
    for child in $(jobs -pr); do
        # sudo is root's, and passes it on.
        kill -- "$child" 2>/dev/null || as_root kill -- "$child" 2>/dev/null || true
        wait "$child" || true
    done
    exit "$1"
}

# handle_signals: have them end this script and what it runs.
handle_signals() {
    trap 'end_with 130' INT
    trap 'end_with 143' TERM
    trap 'end_with 129' HUP
}

# lock FILE: keep others from what it stands for until this script has ended; fails if somebody has it.
lock() {
    mkdir -p -- "$(dirname -- "$1")"
    exec {locked}>"$1"
    flock --nonblock "$locked"
}

key_of() { # reads what something is made from
    sha256sum | cut -d ' ' -f 1
}

# guest_python ARGUMENT...: the machine's own Python, run here: this is the same kind of processor, and many
# times as fast as an emulated one. $root is the machine's root directory.
guest_python() {
    local libraries=${root:?}/usr/lib/x86_64-linux-gnu
    env -u PYTHONPATH PYTHONHOME="$root/usr" "$libraries/ld-linux-x86-64.so.2" \
        --library-path "$libraries:$root/lib/x86_64-linux-gnu" "$root/usr/bin/python3" -s "$@"
}

# byte_compile FOLDER PLACE: for the place that it has in the machine. The sources do not change there, so
# nobody needs to compare times.
byte_compile() {
    guest_python -m compileall -q --invalidation-mode unchecked-hash -s "$1" -p "$2" "$1" >/dev/null ||
        die "could not compile $1 for the Python of the machine"
}
