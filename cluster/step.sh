#!/usr/bin/env bash
# One job of a step, as cluster/submit_all.sh submits it:
#
#   step.sh REQUEUES PYTHON SCRIPT OPTIONS...
#
# Runs the step. Slurm sends USR1 some time before the time limit: the step is then ended, which
# keeps the shards that are done, and the job is put into the queue again, up to REQUEUES times, to
# go on with the others. Exit status: the step's.
set -u

requeues=$1
shift
began=$SECONDS
stopped="" child=""
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OPENBLAS_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} PYTHONUNBUFFERED=1

end_step() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap end_step USR1

echo "$(date '+%F %T') $(hostname) restart ${SLURM_RESTART_COUNT:-0}: $*"
"$@" &
child=$!
[ -z "$stopped" ] || end_step # the signal came before there was a step
wait "$child"
status=$?
while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early
    wait "$child"
    status=$?
done
echo "$(date '+%F %T') status $status after $((SECONDS - began)) s"

if [ -n "$stopped" ] && [ "$status" != 0 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$requeues" ]; then
        echo "the time limit is near, and it was queued again $requeues times before: run it again"
    else
        echo "the time limit is near: queued again, to go on with what is left"
        scontrol requeue "$SLURM_JOB_ID" && sleep 300 # Slurm ends this script
        echo "it could not be queued again: run it again"
    fi
fi
exit "$status"
