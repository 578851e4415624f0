#!/usr/bin/env bash
# Installs feddiff for one silo (install-federator.sh: for the coordinating site) out of a wheelhouse; no network is used.
#
#   sudo ./install-silo.sh --name hospital-a --data /srv/ct --federator federator.example.org:50051 --join fdi1_…
#   sudo ./install-silo.sh --name hospital-a          # again, or from a newer bundle: an upgrade; env files are kept
#   sudo ./install-silo.sh --rollback                 # back to the version before the last upgrade
#
# PREFIX/VERSION is a Python environment of its own, PREFIX/current the one in use, PREFIX/previous the one before it.
# May be repeated at any time, also after it was interrupted.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
role=silo name='' data='' federator='' token='' root='' prefix=/opt/feddiff wheels="$here/wheels" python=python3
gpu='' rollback=''

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  cat <<TEXT

  --name NAME             the silo's name; its settings are /etc/feddiff/silo-NAME.env
  --data FOLDER           the images         } written to new settings, and never over old ones
  --federator HOST:PORT   where to call      }
  --join TOKEN            the invitation: kept in /etc/feddiff/silo-NAME.token, for root alone
  --gpu                   let it use NVIDIA GPUs
  --wheelhouse FOLDER     of wheels (default: wheels/ beside this script)
  --python PYTHON         3.11 or newer (default: python3)
  --prefix FOLDER         default: /opt/feddiff
  --root FOLDER           install below this folder, to try it out: no user is made, systemd is not told
  --rollback              use the previous version again
TEXT
}

say() { printf '%s\n' "$*"; }
fail() { printf 'install-%s: %s\n' "$role" "$1" >&2; exit "${2:-1}"; }

while (($#)); do
  option=$1
  case $option in
    --gpu | --rollback | --help | -h) ;;
    --role | --name | --data | --federator | --join | --wheelhouse | --python | --prefix | --root)
      (($# > 1)) || fail "$option needs a value" 2
      value=$2
      shift ;;
    *) usage >&2; fail "unknown option $option" 2 ;;
  esac
  shift
  case $option in
    --role) role=$value ;;
    --name) name=$value ;;
    --data) data=$value ;;
    --federator) federator=$value ;;
    --join) token=$value ;;
    --gpu) gpu=yes ;;
    --wheelhouse) wheels=$value ;;
    --python) python=$value ;;
    --prefix) prefix=$value ;;
    --root) root=${value%/} ;;
    --rollback) rollback=yes ;;
    *) usage; exit 0 ;;
  esac
done
[[ $prefix == /* ]] || fail "--prefix $prefix: a path from / was expected" 2
[[ $prefix$root =~ ^[A-Za-z0-9/._+-]+$ ]] || fail "--prefix and --root: letters, digits and / . _ + - only" 2
opt=$root$prefix etc=$root/etc/feddiff units=$root/usr/local/lib/systemd/system
[[ -n $root || $EUID == 0 ]] || fail 'must be run by root: sudo, or --root FOLDER to try it out' 77

# Point a link to another version, in one step.
point() { ln -sfn "$2" "$opt/.$1.new" && mv -fT "$opt/.$1.new" "$opt/$1"; }

running() { [[ -z $root && -d /run/systemd/system ]]; }

if [[ -n $rollback ]]; then
  [[ -L $opt/previous && -x $opt/previous/bin/feddiff-silo ]] || fail "there is no previous version in $opt"
  now=$(readlink "$opt/current") before=$(readlink "$opt/previous")
  point current "$before"
  point previous "$now"
  running && systemctl daemon-reload
  say "feddiff $before is in use again (it was $now); now:  systemctl restart 'feddiff-*'"
  say "A state folder that $now has changed says so when $before starts, and is left as it is."
  exit 0
fi

if [[ $role == silo ]]; then
  [[ -n $name ]] || fail 'which silo? give --name NAME, as the invitation says' 2
  [[ $name =~ ^[a-z0-9][a-z0-9._-]{0,62}$ ]] || fail "--name $name: a-z, 0-9, '.', '_' and '-' only" 2
fi
case $token in '' | fdi1_*) ;; *) fail '--join: a token begins with fdi1_' 2 ;; esac

# -- the software

shopt -s nullglob
found=("$wheels"/feddiff-*.whl)
((${#found[@]} == 1)) || fail "$wheels holds ${#found[@]} wheels of feddiff; give the folder of the bundle with --wheelhouse"
wheel=${found[0]}
version=$(basename "$wheel" | cut -d- -f2)
sum=$(sha256sum "$wheel" | cut -d' ' -f1)
command -v "$python" >/dev/null || fail "there is no $python; name one of 3.11 or newer with --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; 3.11 or newer is needed: --python python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make environments; install python3-venv (Debian, Ubuntu) and try again"

place=$opt/$version
if [[ $(cat "$place/.installed" 2>/dev/null) == "$sum" ]]; then
  say "feddiff $version is in $place already"
else
  say "installing feddiff $version into $place (some minutes)"
  mkdir -p "$opt"
  rm -rf "$place"
  "$python" -m venv "$place"
  PIP_CONFIG_FILE=/dev/null "$place/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
    --find-links "$wheels" "feddiff[medical]==$version" ||
    fail "the wheelhouse does not fit $("$python" --version) on $(uname -m); its README names what it was made for"
  "$place/bin/feddiff-$role" --help >/dev/null
  mkdir -p "$place/share/feddiff"
  for page in "$here"/docs/*.md; do install -m 644 "$page" "$place/share/feddiff/"; done
  printf '%s\n' "$sum" >"$place/.installed"
fi
now=$(readlink "$opt/current" || true)
if [[ $now != "$version" ]]; then
  [[ -z $now ]] || point previous "$now"
  point current "$version"
fi
mkdir -p "$root/usr/local/bin"
ln -sfn "$prefix/current/bin/feddiff-$role" "$root/usr/local/bin/feddiff-$role"

# -- who it runs as, its units and settings

user=feddiff-$role
if [[ -z $root ]] && ! getent passwd "$user" >/dev/null; then
  if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers "$here/systemd/sysusers.conf"
  else
    useradd --system --user-group --no-create-home --home-dir /var/lib/feddiff --shell /usr/sbin/nologin "$user"
  fi
fi

# Write stdin to a file that is not there yet; what a person has changed is kept.
settle() {
  if [[ -e $1 ]]; then
    cat >/dev/null
    say "$1 is kept"
    return
  fi
  (umask 077 && cat >"$1.new")
  chmod "$2" "$1.new"
  mv "$1.new" "$1"
  say "$1 is new"
}

# For sed: a value as it stands in a replacement.
quoted() { printf '%s' "$1" | sed 's/[\\&|]/\\&/g'; }

mkdir -p "$units" "$etc"
unit=feddiff-federator.service
[[ $role == federator ]] || unit=feddiff-silo@.service
sed "s|/opt/feddiff/|$prefix/|g" "$here/systemd/$unit" >"$units/.$unit"
mv "$units/.$unit" "$units/$unit"
if [[ $role == silo ]]; then
  if [[ -n $gpu ]]; then
    mkdir -p "$units/$unit.d"
    install -m 644 "$here/systemd/gpu.conf" "$units/$unit.d/gpu.conf"
  fi
  sed -e "s|^FEDDIFF_DATA=.*|FEDDIFF_DATA=$(quoted "${data:-/srv/images}")|" \
    -e "s|^FEDDIFF_FEDERATOR=.*|FEDDIFF_FEDERATOR=$(quoted "${federator:-federator.example.org:50051}")|" \
    "$here/systemd/silo.env" | settle "$etc/silo-$name.env" 644
  [[ -z $data || $(sed -n 's/^FEDDIFF_DATA=//p' "$etc/silo-$name.env") == "$data" ]] ||
    say "  its FEDDIFF_DATA is not $data: change it there, if that is wanted"
  [[ -z $federator || $(sed -n 's/^FEDDIFF_FEDERATOR=//p' "$etc/silo-$name.env") == "$federator" ]] ||
    say "  its FEDDIFF_FEDERATOR is not $federator: change it there, if that is wanted"
  if [[ -z $root ]]; then
    mkdir -p /var/lib/feddiff
    install -d -m 700 -o "$user" -g "$user" "/var/lib/feddiff/$name"
  fi
  if [[ -n $token ]]; then
    rm -f "$etc/silo-$name.token"
    settle "$etc/silo-$name.token" 600 <<<"$token"
  fi
else
  settle "$etc/federator.env" 644 <"$here/systemd/federator.env"
  [[ -n $root ]] || install -d -m 700 -o "$user" -g "$user" /var/lib/feddiff-federator
fi
running && systemctl daemon-reload

say "feddiff $version is installed. Next:"
if [[ $role == silo ]]; then
  say "  sudo -u $user feddiff-silo --state /var/lib/feddiff/$name doctor --data FOLDER --federator HOST:PORT"
  say "  systemctl enable --now feddiff-silo@$name"
else
  say "  cd /var/lib/feddiff-federator && sudo -u $user feddiff-federator init . --address HOST:PORT --preset ct-64"
  say "  systemctl enable --now feddiff-federator"
fi
[[ -z $now || $now == "$version" ]] || say "  systemctl restart 'feddiff-*'   # it was $now; back to it: --rollback"
