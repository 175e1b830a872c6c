#!/bin/sh
# What the Makefile needs done on a machine where nothing is set up yet.
#
#   setup.sh main                  print the Python that the project uses (PYTHON=... overrides)
#   setup.sh others                print one Python for each other version that is installed
#   setup.sh venv DIR PYTHON SPEC  make the virtual environment DIR and install SPEC into it
#   setup.sh programs NAME ...     install the programs that are missing, where that is allowed
set -eu

# Web servers live in sbin, which Debian leaves out of an ordinary user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
OLDEST=11
NEWEST=14

say() {
    printf '%s\n' "setup: $*" >&2
}

may_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
        install -y -q --no-install-recommends "$@" >&2 </dev/null
}

# A web server's package would start it, and have it started at each boot: neither is wanted.
install_packages() {
    guard=/usr/sbin/policy-rc.d
    made=
    if [ ! -e "$guard" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$guard" >/dev/null
        as_root chmod 755 "$guard"
        made=yes
        trap 'as_root rm -f "$guard"' EXIT
        trap 'exit 1' INT TERM HUP
    fi
    status=0
    if ! apt_install "$@"; then
        as_root apt-get update -q >&2 </dev/null || true
        for package in "$@"; do
            apt_install "$package" || status=1
        done
    fi
    if [ -n "$made" ]; then
        as_root rm -f "$guard"
        trap - EXIT INT TERM HUP
    fi
    for package in "$@"; do
        case $package in
        nginx | apache2 | lighttpd | haproxy | caddy)
            if command -v systemctl >/dev/null 2>&1; then
                as_root systemctl disable -q "$package" >/dev/null 2>&1 || true
            fi
            ;;
        php-fpm)
            for unit in /lib/systemd/system/php*-fpm.service; do
                if [ -e "$unit" ] && command -v systemctl >/dev/null 2>&1; then
                    as_root systemctl disable -q "${unit##*/}" >/dev/null 2>&1 || true
                fi
            done
            ;;
        esac
    done
    return $status
}

package_of() {
    case $1 in
    cc) echo gcc libc6-dev ;;
    mod_fcgid) echo libapache2-mod-fcgid ;;
    *) echo "$1" ;;
    esac
}

# Modules of Apache are no programs; Debian appends PHP's version to the name of its binary.
has() {
    command -v "$1" >/dev/null 2>&1 && return 0
    case $1 in
    mod_*) [ -e "/usr/lib/apache2/modules/$1.so" ]; return ;;
    php-fpm) ;;
    *) return 1 ;;
    esac
    for binary in /usr/sbin/php-fpm*; do
        [ -x "$binary" ] && return 0
    done
    return 1
}

programs() {
    packages=
    missing=
    for program in "$@"; do
        has "$program" && continue
        missing="$missing $program"
        packages="$packages $(package_of "$program")"
    done
    [ -n "$missing" ] || return 0
    if ! may_install; then
        say "not installed:$missing (on Debian: apt-get install$packages)"
        return 0
    fi
    # shellcheck disable=SC2086
    install_packages $packages || say "not all of these could be installed:$packages"
}

# Print "MINOR PATH" when $1 is a CPython that the project supports. Going by what runs, since a
# shim on the PATH may stand for a version that is not selected.
supported() {
    "$1" -c "
import sys
v = sys.version_info
if v[0] == 3 and $OLDEST <= v[1] <= $NEWEST and sys.implementation.name == 'cpython':
    print(v[1], sys.executable)
" 2>/dev/null || true
}

candidates() {
    echo python3
    minor=$OLDEST
    while [ "$minor" -le "$NEWEST" ]; do
        echo "python3.$minor"
        echo "/usr/bin/python3.$minor"
        for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor"*/bin/python; do
            case $python in
            *t/bin/python | *-dev/bin/python) ;;
            *) [ -x "$python" ] && echo "$python" ;;
            esac
        done
        minor=$((minor + 1))
    done
}

# The first that can make virtual environments, else the first.
main_python() {
    found=$(
        if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; else candidates; fi | {
            first=
            while read -r python; do
                line=$(supported "$python")
                [ -n "$line" ] || continue
                first=${first:-${line#* }}
                if "${line#* }" -c 'import ensurepip' 2>/dev/null; then
                    first=${line#* }
                    break
                fi
            done
            echo "$first"
        }
    )
    if [ -z "$found" ]; then
        say "no Python 3.$OLDEST to 3.$NEWEST was found (PYTHON=/path/to/python names one)"
        return 3
    fi
    echo "$found"
}

other_pythons() {
    main=$(supported "$(main_python)")
    seen=" ${main%% *} "
    candidates | while read -r python; do
        line=$(supported "$python")
        minor=${line%% *}
        case "$seen" in
        *" $minor "*) continue ;;
        esac
        if [ -n "$line" ] && "${line#* }" -c 'import ensurepip' 2>/dev/null; then
            seen="$seen$minor "
            echo "${line#* }"
        fi
    done
}

make_venv() {
    folder=$1 python=$2 spec=$3
    if ! "$folder/bin/python" -c 'import pip' 2>/dev/null; then
        rm -rf "$folder"
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            minor=$("$python" -c 'import sys; print(sys.version_info[1])')
            package="python3.$minor-venv"
            if ! may_install || ! install_packages "$package"; then
                say "$python cannot make virtual environments: install Debian's $package"
                return 3
            fi
        fi
        "$python" -m venv "$folder"
    fi
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check -e "$spec"
}

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
main) main_python ;;
others) other_pythons ;;
venv) make_venv "$@" ;;
programs) programs "$@" ;;
*)
    say "usage: setup.sh main | others | venv DIR PYTHON SPEC | programs NAME ..."
    exit 2
    ;;
esac
