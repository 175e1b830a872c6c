#!/bin/sh
# What the Makefile needs done on a machine where nothing is set up yet.
#
#   setup.sh main                  print the Python that the project uses (PYTHON=... overrides)
#   setup.sh others                print one Python for each other version that is installed
#   setup.sh bench                 print the Python that the benchmark measures with
#   setup.sh venv DIR PYTHON SPEC  make the virtual environment DIR and install SPEC into it
#   setup.sh compiled DIR PYTHON EXTRAS TREE
#                                  the same of a compiled wheel; TREE gets a copy without src/
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
        nginx | apache2 | lighttpd | haproxy | caddy | h2o)
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
    ip) echo iproute2 ;;
    mariadb) echo mariadb-client ;;
    mariadbd) echo mariadb-server-core ;;
    mod_fcgid) echo libapache2-mod-fcgid ;;
    systemd-analyze) echo systemd ;;
    unshare) echo util-linux ;;
    uwsgi) echo uwsgi-core uwsgi-plugin-python3 ;;
    go) echo golang-go ;;
    mod_jk) echo libapache2-mod-jk ;;
    *) echo "$1" ;;
    esac
}

# A lighttpd that carries WebSockets over FastCGI (1.4.74). Where Debian's is older, that of the next
# release is unpacked, with its libraries and its loader, into a folder of its own: nothing of it is
# installed. It comes from where this machine's packages come from.
LIGHTTPD_NEXT=${XDG_CACHE_HOME:-$HOME/.cache}/fulgate/lighttpd-next
NEXT_RELEASE=trixie
NEXT_PACKAGES="lighttpd libc6 libpcre2-8-0 libxxhash0 libnettle8t64 zlib1g libzstd1 libbrotli1 libcrypt1"

lighttpd_next() {
    command -v apt-get >/dev/null 2>&1 || return 1
    rm -rf "$LIGHTTPD_NEXT"
    mkdir -p "$LIGHTTPD_NEXT/lists/partial" "$LIGHTTPD_NEXT/archives/partial"
    version=$(dpkg-query -W -f '${Version}' lighttpd 2>/dev/null || echo 0)
    if dpkg --compare-versions "$version" ge 1.4.74; then
        printf '#!/bin/sh\nexec lighttpd "$@"\n' >"$LIGHTTPD_NEXT/lighttpd-next"
        chmod 755 "$LIGHTTPD_NEXT/lighttpd-next"
        return 0
    fi
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' \
        | grep -v security | sort | uniq -c | sort -rn | sed -n '1s/^ *[0-9]* //p')
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] $mirror $NEXT_RELEASE main" >"$LIGHTTPD_NEXT/sources.list"
    (
        cd "$LIGHTTPD_NEXT/archives"
        from_next() {
            apt-get -q -o "Dir::Etc::sourcelist=$LIGHTTPD_NEXT/sources.list" \
                -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$LIGHTTPD_NEXT/lists" \
                -o "Dir::Cache=$LIGHTTPD_NEXT" "$@" >&2 </dev/null
        }
        # shellcheck disable=SC2086
        from_next update && from_next download $NEXT_PACKAGES || exit 1
        for package in *.deb; do
            dpkg-deb -x "$package" "$LIGHTTPD_NEXT/root" || exit 1
        done
    ) || return 1
    rm -rf "$LIGHTTPD_NEXT/lists" "$LIGHTTPD_NEXT/archives" "$LIGHTTPD_NEXT"/*.bin \
        "$LIGHTTPD_NEXT/sources.list"
    root=$LIGHTTPD_NEXT/root
    loader=$(find "$root" -name 'ld-linux*' | head -n 1)
    libraries=$(find "$root" -name 'libc.so.6' | head -n 1)
    cat >"$LIGHTTPD_NEXT/lighttpd-next" <<END
#!/bin/sh
exec "$loader" --library-path "${libraries%/*}" "$root/usr/sbin/lighttpd" -m "$root/usr/lib/lighttpd" "\$@"
END
    chmod 755 "$LIGHTTPD_NEXT/lighttpd-next"
    "$LIGHTTPD_NEXT/lighttpd-next" -v >/dev/null
}

# Modules of Apache and headers of C are no programs; Debian appends PHP's version to the name of
# its binary.
has() {
    command -v "$1" >/dev/null 2>&1 && return 0
    case $1 in
    lighttpd-next) [ -x "$LIGHTTPD_NEXT/lighttpd-next" ]; return ;;
    mod_*) [ -e "/usr/lib/apache2/modules/$1.so" ]; return ;;
    libfcgi-dev) [ -e /usr/include/fcgiapp.h ]; return ;;
    libev-dev) [ -e /usr/include/ev.h ]; return ;;
    python3-dev)
        "$(main_python)" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' \
            2>/dev/null
        return
        ;;
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
        if [ "$program" = lighttpd-next ]; then
            lighttpd_next || say "lighttpd of Debian $NEXT_RELEASE could not be unpacked"
            continue
        fi
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

# Distributions build theirs with optimisations that what is built by hand often lacks, and it is
# what most servers run on: measure that, where packages can be compiled for it.
bench_python() {
    system=/usr/bin/python3
    if [ -z "${PYTHON:-}" ] && [ -n "$(supported $system)" ] && $system -c '
import ensurepip, os, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null; then
        echo $system
    else
        main_python
    fi
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

empty_venv() {
    folder=$1 python=$2
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
}

pip() {
    "$folder/bin/python" -m pip "$@" -qq --disable-pip-version-check
}

make_venv() {
    empty_venv "$1" "$2"
    pip install -e "$3"
}

# Built from a copy: a folder build/ from before would add what is no longer in src/.
make_compiled() {
    empty_venv "$1" "$2"
    extras=$3 tree=$4
    rm -rf "$tree"
    mkdir -p "$tree"
    tar -cf - --exclude='./.*' --exclude=./build --exclude=./dist --exclude='*.egg-info' \
        --exclude='./bench/.*' --exclude=__pycache__ --exclude='*.so' . | tar -xf - -C "$tree"
    state=$(cd "$tree" && find setup.py pyproject.toml src -type f | LC_ALL=C sort \
        | xargs sha256sum | sha256sum)
    if [ "$(cat "$folder/.compiled" 2>/dev/null)" != "$state" ]; then
        rm -rf "$tree/dist"
        FULGATE_COMPILE=1 pip wheel --no-deps -w "$tree/dist" "$tree"
        pip install --force-reinstall --no-deps "$tree"/dist/*.whl
        for wheel in "$tree"/dist/*.whl; do
            pip install "$wheel$extras"
        done
        echo "$state" >"$folder/.compiled"
    fi
    rm -rf "$tree/src" "$tree/build"
}

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
main) main_python ;;
others) other_pythons ;;
bench) bench_python ;;
venv) make_venv "$@" ;;
compiled) make_compiled "$@" ;;
programs) programs "$@" ;;
*)
    say "usage: setup.sh main | others | bench | venv DIR PYTHON SPEC | compiled ... | programs NAME ..."
    exit 2
    ;;
esac
