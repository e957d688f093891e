#!/usr/bin/env bash
# A real Slurm for the tests: one node, this machine, on 127.0.0.1 only.
#
#   slurm.sh start FOLDER    install what is missing, start munged, slurmctld, slurmd; prints the
#                            configuration, for the variable SLURM_CONF
#   slurm.sh stop FOLDER     stop what `start` started
#
# For machines that may be changed: a CI runner or a container with Debian or Ubuntu, as root. Adds
# two packages and their dependencies; all else is below FOLDER. About 25 s the first time, 3 s then.
# Exit status: 0 done; 77 cannot be done on this machine (the last line tells why); else a failure.
set -euo pipefail

PORT=${SLURM_TEST_PORT:-16817} # and the next
APT=(apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold)
export DEBIAN_FRONTEND=noninteractive

cannot() { echo "no Slurm: $*" >&2; exit 77; }

install_slurm() {
    command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
    command -v apt-get >/dev/null || cannot "it is installed with apt-get, which is not here"
    apt-get update -qq >&2 || cannot "apt-get update failed"
    "${APT[@]}" slurm-wlm munge >&2 || cannot "apt-get cannot install slurm-wlm and munge"
}

write_configuration() {
    local node memory
    node=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    cat >"$1/slurm.conf" <<C
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
AuthType=auth/munge
AuthInfo=socket=$1/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
MaxArraySize=1001
KillWait=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
C
}

start_munge() {
    install -d -m 700 "$1/munge"
    head -c 1024 /dev/urandom >"$1/munge/key"
    chmod 400 "$1/munge/key"
    munged --force --key-file="$1/munge/key" --socket="$1/munge/socket" --pid-file="$1/munge/pid" \
        --log-file="$1/munge/log" --seed-file="$1/munge/seed" >&2 || cannot "munged does not start"
}

start() {
    [ "$(id -u)" = 0 ] || cannot "it is installed as root, this is $(id -un)"
    install_slurm
    mkdir -p "$1/state" "$1/spool"
    write_configuration "$1"
    start_munge "$1"
    export SLURM_CONF=$1/slurm.conf
    slurmctld >&2 || cannot "slurmctld does not start: $(tail -1 "$1/slurmctld.log")"
    slurmd >&2 || cannot "slurmd does not start: $(tail -1 "$1/slurmd.log")"
    for _ in $(seq 240); do
        if sinfo -h -o %T 2>/dev/null | grep -q idle; then
            echo "$SLURM_CONF"
            return
        fi
        sleep 0.25
    done
    cannot "the node is not idle after 60 s: $(tail -1 "$1/slurmd.log")"
}

stop() {
    for name in slurmd.pid slurmctld.pid munge/pid; do
        [ ! -s "$1/$name" ] || kill "$(cat "$1/$name")" 2>/dev/null || true
    done
}

case "${1:-}" in
    start) start "$(realpath -m "${2:?folder}")" ;;
    stop) stop "$(realpath -m "${2:?folder}")" ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
