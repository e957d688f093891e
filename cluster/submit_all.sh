#!/usr/bin/env bash
# Steps 2 to 10 as a chain of Slurm jobs (docs/cluster.md).
#
#   cluster/submit_all.sh --dry-run          what would be submitted
#   cluster/submit_all.sh                    submits it
#   STEPS="9 10" ARRAY=3,17 cluster/submit_all.sh        parts that failed, again
#   ARRAY=left cluster/submit_all.sh         all parts in which something is left
#
# Options are variables of the environment, or set here. Exit status: 0 submitted, 2 something is
# missing, else sbatch's.
set -euo pipefail

DATA_DIR=${DATA_DIR:-data}
MODEL=${MODEL:-output_folder}                     # of step 8, or one that is there
LABELS=${LABELS:-training_params.h5}              # step 6
TRAINING_DATA=${TRAINING_DATA:-training_data.h5}  # of step 7
UNWISE_DIR=${UNWISE_DIR:-}                        # tiles, for step 4
DUSTMAPS_DIR=${DUSTMAPS_DIR:-}                    # maps, for step 5; default: that of dustmaps
MAPS=${MAPS:-bayestar sfd}                        # for step 5
STEPS=${STEPS:-2 3 4 5 7 8 9 10}
PARTS=${PARTS:-100}                  # tasks of a job array; keep it when parts are run again
ARRAY=${ARRAY:-}                     # parts, as in 3,17 or 0-9; left; default: all
ACCOUNT=${ACCOUNT:-}
PARTITION=${PARTITION:-}
SBATCH_OPTIONS=${SBATCH_OPTIONS:-}   # of all jobs, after those that are made here
REQUEUES=${REQUEUES:-5}              # most times that a job goes on after its time limit
SLACK=${SLACK:-4}                    # time limits are so many times what was measured
ARCHIVE_TASKS=${ARCHIVE_TASKS:-1}    # of steps 2 and 3 at once, each with 2 jobs at the archive
ARCHIVE_MINUTES=${ARCHIVE_MINUTES:-2}  # assumed of a job there
PYTHON=${PYTHON:-}                   # default: .venv/bin/python of the project, else python3
# Further options of step K's script: OPTIONS_K, as in OPTIONS_2="--login login.txt".

case "${1:-}" in
    "" | --dry-run) ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
dry_run=${1:-}

root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
logs=$(realpath -m "$DATA_DIR")/logs/slurm

plan=(--data-dir "$(realpath -m "$DATA_DIR")" --model "$(realpath -m "$MODEL")"
    --labels "$(realpath -m "$LABELS")" --training-data "$(realpath -m "$TRAINING_DATA")"
    --steps $STEPS --maps $MAPS --parts "$PARTS" --array "$ARRAY" --slack "$SLACK" --logs "$logs"
    --archive-tasks "$ARCHIVE_TASKS" --archive-minutes "$ARCHIVE_MINUTES")
[ -z "$UNWISE_DIR" ] || plan+=(--unwise-dir "$(realpath -m "$UNWISE_DIR")")
[ -z "$DUSTMAPS_DIR" ] || plan+=(--dustmaps-dir "$(realpath -m "$DUSTMAPS_DIR")")
most=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *//p' || true)
[ -z "$most" ] || plan+=(--max-array "$most")
for step in $STEPS; do
    extra=OPTIONS_$step
    [ -z "${!extra:-}" ] || plan+=(--extra "$step" "${!extra}")
done
planned=$("$PYTHON" "$root/cluster/plan.py" "${plan[@]}")

common=(--parsable --requeue --open-mode=append --chdir="$root")
[ -z "$ACCOUNT" ] || common+=(--account="$ACCOUNT")
[ -z "$PARTITION" ] || common+=(--partition="$PARTITION")
read -ra further <<<"$SBATCH_OPTIONS"
[ -n "$dry_run" ] || mkdir -p "$logs" # Slurm makes no folders: a job without its log fails

declare -A jobs
while IFS=$'\x1f' read -r step needs options command; do
    [ -n "$step" ] || continue
    waits=""
    for need in $needs; do
        job=${jobs[${need#*:}]:-}
        [ -z "$job" ] || waits+=",${need%%:*}:$job"
    done
    eval "submit=(sbatch $options)"
    submit+=("${common[@]}")
    [ -z "$waits" ] || submit+=(--dependency="${waits#,}" --kill-on-invalid-dep=yes)
    eval "submit+=(\"\${further[@]}\" \"\$root/cluster/step.sh\" \"\$REQUEUES\" \"\$PYTHON\" $command)"
    if [ -n "$dry_run" ]; then
        printf '%q ' "${submit[@]}"
        echo
        jobs[$step]=JOB_OF_STEP_$step
    else
        jobs[$step]=$("${submit[@]}")
        jobs[$step]=${jobs[$step]%%;*} # of several clusters, the name follows
        echo "step $step: job ${jobs[$step]}${waits:+, after ${waits#,}}"
    fi
done <<<"${planned//$'\t'/$'\x1f'}" # tabs side by side would be taken for one

[ -n "$dry_run" ] || echo "logs in $logs; python tools/status.py --data-dir $DATA_DIR tells how far they are"
