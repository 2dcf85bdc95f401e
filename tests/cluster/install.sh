#!/usr/bin/env bash
# Puts Debian's Slurm here for the cluster tests, where that is possible; they never use its services.
# Quick when it is there. Where it can't be done the tests are skipped, and say so.
set -euo pipefail
for program in slurmctld slurmd srun munged ip nsenter unshare mariadbd slurmdbd; do
	PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing="${missing:-} $program"
done
if [ -z "${missing:-}" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "== no$missing here, and only root on Debian can install it: tests/cluster will be skipped"
	exit 0
fi
echo "== installing$missing for tests/cluster: 22 MB"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null || true
apt-get install -y -qq --no-install-recommends \
	slurm-wlm munge iproute2 util-linux slurmdbd slurm-wlm-mysql-plugin mariadb-server-core </dev/null >/dev/null ||
	echo "== that failed: tests/cluster will be skipped"
