#!/bin/sh
# Makes .env for docker compose, or fills in what it lacks: deploy/make-env.sh [FILE]
# Secrets that are there stay as they are, so that it can be run again. The file is for its owner's eyes alone.
set -eu
umask 077
root=$(cd "$(dirname "$0")/.." && pwd)
file=${1:-$root/.env}

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
value() { sed -n "s/^$1=//p" "$file" | tail -n 1; }
fill() { # NAME VALUE: only where the file has none
  [ -z "$(value "$1")" ] || return 0
  if grep -q "^$1=" "$file"; then
    sed "s/^$1=.*/$1=$2/" "$file" >"$file.partial" && mv "$file.partial" "$file"
  else
    printf '%s=%s\n' "$1" "$2" >>"$file"
  fi
  made="$made $1"
}

made=""
[ -e "$file" ] || cp "$root/.env.example" "$file"
chmod 600 "$file"
fill TEXTMILL_STORE_ACCESS_KEY textmill
for name in TEXTMILL_STORE_SECRET_KEY TEXTMILL_TOKEN TEXTMILL_API_KEY GRAFANA_ADMIN_PASSWORD; do
  fill "$name" "$(random)"
done
fill TEXTMILL_SYNTH_LLM_API_KEY "$(value TEXTMILL_API_KEY)"
digest=$(printf %s "$(value TEXTMILL_API_KEY)" | sha256sum | cut -d ' ' -f 1)
case $(value TEXTMILL_API_KEY_SHA256) in
  "" | "$digest") fill TEXTMILL_API_KEY_SHA256 "$digest" ;;
  *) echo "$file: TEXTMILL_API_KEY_SHA256 is not the digest of TEXTMILL_API_KEY; delete that line and run this again" >&2; exit 1 ;;
esac
echo "$file:${made:- nothing was missing}"
