#!/usr/bin/env bash
# The one way this project is installed: the Makefile, and so CI, and docker/Dockerfile all call this script.
#
#   install.sh PYTHON dependencies [EXTRA]   what pyproject.toml asks for, at the versions of constraints.txt
#   install.sh PYTHON project [PIP OPTIONS]  the project itself, after its dependencies
#
# Two steps, because an image rebuilds only the second one when the code changes.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: install.sh PYTHON dependencies|project [...]" >&2
    exit 2
fi
python=$1
step=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

pip_install() {
    "$python" -m pip install --disable-pip-version-check --no-input -c "$root/constraints.txt" "$@"
}

case $step in
dependencies)
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
    # the pinned setuptools builds: an isolated build would fetch another one
    pip_install --no-build-isolation --no-deps "$@" "$root"
    ;;
*)
    echo "install.sh: unknown step $step; use dependencies or project" >&2
    exit 2
    ;;
esac
