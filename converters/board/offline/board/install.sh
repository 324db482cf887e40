#!/bin/sh
# Installs this bundle's engine on the board: no network, no compiler, no pip, no root.
#
#     sh bundle/board/install.sh ENV_DIR
#
# ENV_DIR/bin/edge is the program afterwards. Doing it again changes nothing.
set -u

fail() {
    printf 'error: %s\n  next: %s\n' "$1" "$2" >&2
    exit 5
}

[ $# -eq 1 ] || fail "install.sh needs one argument, the folder to make" "sh $0 ENV_DIR"
# From / with absolute paths: nothing in the caller's folder is run, whatever PATH says.
case $0 in /*) here=$0 ;; *) here=$PWD/$0 ;; esac
case $1 in /*) env=$1 ;; *) env=$PWD/$1 ;; esac
python=${BOARDFIT_PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
cd / || exit 5
command -v "$python" >/dev/null 2>&1 || fail "there is no Python on this board ($python)" \
    "apt-get install python3, or choose an image that has it"
"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$("$python" --version 2>&1) is too old; boardfit needs 3.10 or later" \
        "use a newer image (Debian 12, Ubuntu 22.04), or set BOARDFIT_PYTHON to a newer python3"
exec "$python" -I -B "${here%/*}/install.py" "$env"
