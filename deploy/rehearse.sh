#!/usr/bin/env bash
# A whole federation on one machine, as three network namespaces: a federator and two silos that see each other by
# nothing but a wire. init, invite, join, serve, train, revoke one, renew the other during a round, finish.
#
#   sudo deploy/rehearse.sh [--python .venv/bin/python] [--keep FOLDER]
#
# Needs root, iproute2 and an environment with feddiff; touches neither this machine's network nor its state.
set -euo pipefail

python=.venv/bin/python keep='' port=50051
while (($#)); do
  case $1 in
    --python) python=$2 ;;
    --keep) keep=$2 ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
  shift 2
done
[[ $EUID == 0 ]] || { echo 'rehearse: needs root, for network namespaces: sudo deploy/rehearse.sh' >&2; exit 77; }
command -v ip >/dev/null || { echo 'rehearse: needs the command ip (iproute2)' >&2; exit 69; }
"$python" -c 'import feddiff.core' || { echo "rehearse: $python has no feddiff; give another --python" >&2; exit 69; }
python=$(realpath -s "$python")

work=${keep:-$(mktemp -d)}
mkdir -p "$work"
work=$(realpath "$work")
fed="$work/federator" tag="fd$$"
declare -A pid=()
export OMP_NUM_THREADS=1

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf '\nrehearse: %s\n' "$*" >&2
  tail -n 15 "$work"/*.log >&2 || true
  exit 1
}

cleanup() {
  for each in "${pid[@]}"; do kill -9 "$each" 2>/dev/null || true; done
  for each in f a b; do ip netns delete "$tag$each" 2>/dev/null || true; done
  [[ -n $keep ]] || rm -rf "$work"
}
trap cleanup EXIT

inside() { local where=$1; shift; ip netns exec "$tag$where" "$@"; }
federator() { inside f "$python" -m feddiff.federator.cli "$@"; }
silo() { local where=$1; shift; inside "$where" "$python" -m feddiff.silo.cli "$@"; }
operate() { federator "$@" --config "$fed/federation.toml"; }

# What the federator's status says under a key of its JSON.
status() { operate status --json | "$python" -c "import json, sys; told = json.load(sys.stdin); print($1)"; }

# Wait until a command's output is as wanted; fail if a daemon ended before its time.
until_it_is() {
  local wanted=$1 found=''
  shift
  for ((tries = 0; tries < 600; tries++)); do
    found=$("$@" 2>/dev/null || true)
    [[ $found == "$wanted" ]] && return 0
    kill -0 "${pid[f]}" 2>/dev/null || break
    sleep 0.5
  done
  fail "waited for '$wanted' of: $* (it is '$found')"
}

say 'three network namespaces, joined by a bridge that is in the federator'\''s'
for each in f a b; do
  ip netns add "$tag$each"
  inside "$each" ip link set lo up
done
inside f ip link add lan type bridge
inside f ip addr add 10.77.0.1/24 dev lan
inside f ip link set lan up
address=2
for each in a b; do
  ip -n "$tag$each" link add eth0 type veth peer name "to-$each" netns "$tag"f
  inside f ip link set "to-$each" master lan up
  inside "$each" ip addr add "10.77.0.$address/24" dev eth0
  inside "$each" ip link set eth0 up
  address=$((address + 1))
done

say 'images: handwritten digits, half of them for each silo'
"$python" - "$work" <<'PYTHON'
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images[:240], digits.target[:240])):
    folder = Path(sys.argv[1]) / f"images-{'ab'[number % 2]}" / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
PYTHON

say 'init'
federator init "$fed" --address "10.77.0.1:$port" --name rehearsal --preset digits-8
cat >"$fed/federation.toml" <<'TOML'
name = "rehearsal"
preset = "digits-8"

[training]
epochs = 2
threads = 1

[codec]
up = "int8"
down = "int8"

[rounds]
count = 500
participants = 2
quorum = 1
grace = 60
deadline = 300
TOML

say 'serve'
operate serve >"$work/federator.log" 2>&1 &
pid[f]=$!
until_it_is 0 status "told['round']"

for each in a b; do
  say "invite and join: silo $each"
  token=$(operate invite "hospital-$each" --token-only)
  silo "$each" join "$token" --state "$work/silo-$each"
  silo "$each" --state "$work/silo-$each" --data "$work/images-$each" --federator "10.77.0.1:$port" \
    >"$work/silo-$each.log" 2>&1 &
  pid[$each]=$!
done

say 'train: the first round, with both'
until_it_is True status "told['round'] >= 2"
[[ -z $(inside a ss -Hltn) ]] || fail 'silo a listens on a port'
echo 'round 1 is averaged; silo a listens on no port'

say 'revoke silo b'
operate revoke hospital-b --reason rehearsal
code=0
wait "${pid[b]}" || code=$?
unset 'pid[b]'
[[ $code == 77 ]] || fail "silo b ended with $code, not 77"
tail -n 1 "$work/silo-b.log"

say 'renew silo a during a round: the CA is replaced, so every silo renews at once'
operate rotate-ca
until_it_is 1 grep -c 'the certificate is renewed' "$work/silo-a.log"
grep 'the certificate is renewed' "$work/silo-a.log"
if grep -q 'went on without this silo' "$work/silo-a.log"; then fail 'the renewal cost silo a a round'; fi

say 'finish: the open round ends, and there is no other'
operate stop
for each in a f; do
  code=0
  wait "${pid[$each]}" || code=$?
  unset "pid[$each]"
  [[ $code == 0 ]] || fail "$each ended with $code"
done
operate status
operate ledger | tail -n 8
say 'done: init, invite, join, serve, train, revoke, renew, finish'
