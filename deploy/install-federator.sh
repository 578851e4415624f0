#!/usr/bin/env bash
# Installs feddiff for the coordinating site out of a wheelhouse: as install-silo.sh, which it calls, does for a silo.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/install-silo.sh" --role federator "$@"
