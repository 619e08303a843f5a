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

log=${INSTALL_LOG:-$("$python" -c 'import sys; print(sys.prefix)')/install.log}
if ! { : >> "$log"; } 2> /dev/null; then # the environment's folder may belong to somebody else
    log=$(mktemp -t install.XXXXXX.log)
fi

pip_install() {
    local status=0
    echo "== pip install $*" >> "$log"
    "$python" -m pip install --disable-pip-version-check --no-input -c "$root/constraints.txt" "$@" >> "$log" 2>&1 || status=$?
    if [[ $status != 0 ]]; then
        echo "pip failed; the end of $log, which has all that it said:" >&2
        tail -n 40 "$log" >&2
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
