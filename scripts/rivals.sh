#!/usr/bin/env bash
# Installs what `make bench-rivals` compares pgbridge with and what is not there
# yet: Debian's PostgreSQL 15 with pglogical, and Bucardo with the PL/Perl that
# it needs. It does nothing when all of it is there.
#
# It installs into the system, and therefore only as root. No server and no
# daemon is started by it, and no cluster made: the benchmark runs its own.
set -euo pipefail

say() { printf 'rivals.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

packages=(postgresql-15 postgresql-15-pglogical postgresql-plperl-15 bucardo)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

command -v dpkg-query >/dev/null ||
	die "the rivals are installed from Debian's packages (${packages[*]}), and this is no Debian; run the benchmark in a container of debian:bookworm"
missing=()
for package in "${packages[@]}"; do
	installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || die "missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}"

# Debian's packages make a cluster and start it, and start Bucardo's daemon.
# Both settings are for the time of the installation, and only where the
# machine's owner has not said something else.
policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d/pgbridge-rivals.conf
made=()
restore() {
	[ ${#made[@]} -eq 0 ] || rm -f "${made[@]}"
	rmdir "${clusters%/*}" 2>/dev/null || true # stays if something else is in it
}
trap restore EXIT
if [ ! -e "$policy" ]; then
	made+=("$policy")
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
if [ ! -e "$clusters" ]; then
	made+=("$clusters")
	mkdir -p "${clusters%/*}"
	echo 'create_main_cluster = false' >"$clusters"
fi

say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get install -qq --no-install-recommends "${missing[@]}" >&2 ||
	die "apt-get cannot install ${missing[*]} (Debian 12 has them); run apt-get update and try again"
