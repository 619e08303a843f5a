#!/usr/bin/env bash
# The one way this project is installed: the Makefile, and so CI, and docker/Dockerfile all call this script.
#
#   install.sh PYTHON dependencies [EXTRA]   what pyproject.toml asks for, at the versions of constraints.txt
#   install.sh PYTHON project [PIP OPTIONS]  the project itself, after its dependencies
#
# Two steps, because an image rebuilds only the second one when the code changes. What pip says, thousands of lines, goes to
# install.log in the environment's folder (or INSTALL_LOG), and its end to the terminal when pip fails.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: install.sh PYTHON dependencies|project [...]" >&2
    exit 2
fi
python=$1
step=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.11 | 3.12 | 3.13) ;;
*)
    echo "error: $python is Python $version, and 3.11 to 3.13 are needed, for which Ray and decord have packages: install one" \
        "of them, for example python3.11, and make the environment with it (docs/installation.md)" >&2
    exit 2
    ;;
esac

log=${INSTALL_LOG:-$("$python" -c 'import sys; print(sys.prefix)')/install.log}
if ! { : >> "$log"; } 2> /dev/null; then # the environment's folder may belong to somebody else
    log=$(mktemp -t install.XXXXXX.log)
fi

# what pip says where it reaches no index
unreachable='NewConnectionError|ConnectTimeoutError|ConnectionError|ProxyError|Max retries exceeded|Failed to establish'

pip_install() {
    local status=0 begun
    echo "== pip install $*" >> "$log"
    begun=$(wc -l < "$log")
    "$python" -m pip install --disable-pip-version-check --no-input -c "$root/constraints.txt" "$@" >> "$log" 2>&1 || status=$?
    if [[ $status != 0 ]]; then
        echo "pip failed; the end of $log, which has all that it said:" >&2
        tail -n 40 "$log" >&2
        if grep -qE "$unreachable" <(tail -n "+$begun" "$log"); then
            echo "error: the package index cannot be reached: check the network, the proxy (https_proxy), and which index pip" \
                "asks (pip config list)" >&2
        fi
        echo "what was installed stays: the same command goes on from there" >&2
        exit "$status"
    fi
}

case $step in
dependencies)
    echo "installing the dependencies, up to 8 GB and some minutes; what pip says: $log"
    pip_install --upgrade pip setuptools
    wanted=$(mktemp)
    trap 'rm -f "$wanted"' EXIT
    "$python" - "$root/pyproject.toml" "$@" > "$wanted" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[2:])]
print("\n".join(line for lines in lists for line in lines))
PYTHON
    pip_install -r "$wanted"
    ;;
project)
    echo "installing the project; what pip says: $log"
    # the pinned setuptools builds: an isolated build would fetch another one
    pip_install --no-build-isolation --no-deps "$@" "$root"
    ;;
*)
    echo "install.sh: unknown step $step; use dependencies or project" >&2
    exit 2
    ;;
esac
