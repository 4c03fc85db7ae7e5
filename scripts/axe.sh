#!/usr/bin/env bash
# Fetches axe-core, which looks at the console's page for what keeps people from using it, to where its argument says. It is pinned by
# version and digest, and does nothing if it is there; npm and node are needed, nothing is installed into the system.
#
#   scripts/axe.sh build/axe.min.js
set -euo pipefail
version=4.14.1
digest=e63e659f9806d7ae5bd40899043b0871a5062c5442b01b3f1a3edf5eaf50bf5c3a7104a72463293b4ad1b77c661a0d4e40e850dec89de9d6ece70a8c13a9af17
to=$1

die() { echo "axe.sh: $*" >&2; exit 1; }

for tool in npm node tar; do
	command -v "$tool" >/dev/null || die "$tool is needed to fetch axe-core; install it"
done

sum() {
	node -e 'process.stdout.write(require("crypto").createHash("sha512").update(require("fs").readFileSync(process.argv[1])).digest("hex"))' "$1"
}

if [ -f "$to" ] && [ "$(sum "$to")" = "$digest" ]; then exit 0; fi
mkdir -p "$(dirname "$to")"
work=$(mktemp -d "$to.XXXXXX")
trap 'rm -rf "$work"' EXIT
tarball=$(cd "$work" && npm pack --silent "axe-core@$version")
tar -xzf "$work/$tarball" -C "$work" package/axe.min.js
[ "$(sum "$work/package/axe.min.js")" = "$digest" ] || die "axe-core@$version is not the package that was pinned"
mv "$work/package/axe.min.js" "$to"
