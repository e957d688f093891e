#!/usr/bin/env bash
# A real TAP server for the tests: GAVO DaCHS on PostgreSQL, on 127.0.0.1 only.
#
#   tap_server.sh start PORT TABLES   install what is missing, load TABLES/{schema}/*.csv, serve
#   tap_server.sh stop                stop what `start` started
#
# For machines that may be changed: a CI runner or a container with Debian bookworm, as root. Adds
# two Debian packages and their dependencies, the database `gavo`, /etc/gavo.rc and /var/gavo, and
# mends four lines of the installed packages (patch_dachs.py). About 60 s the first time, 15 s then.
# Exit status: 0 done; 77 cannot be done on this machine (the last line tells why); else a failure.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
SCHEMAS="gaiadr3 external gaiadr1"
SIGN="# written by tests/services/tap_server.sh"
STATE=/run/tap_server_of_tests # names what `start` started
INPUTS=/var/gavo/inputs
APT=(apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold)
export DEBIAN_FRONTEND=noninteractive

say() { echo "[${SECONDS} s] $*" >&2; }
cannot() { echo "no TAP server: $*" >&2; exit 77; }
installed() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

check_machine() {
    [ "$(id -u)" = 0 ] || cannot "it is installed as root, this is $(id -un)"
    command -v apt-get >/dev/null || cannot "it is installed with apt-get, which is not here"
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "${VERSION_CODENAME:-}" = bookworm ] || cannot "made for Debian bookworm, this is ${PRETTY_NAME:-unknown}"
    if [ -e /etc/gavo.rc ] && ! grep -qxF "$SIGN" /etc/gavo.rc; then
        cannot "/etc/gavo.rc belongs to another DaCHS"
    fi
}

start_postgres() {
    pg_lsclusters -h | grep -q '^15 *main ' || pg_createcluster 15 main >&2
    if [ "$(pg_lsclusters -h | awk '$1 == 15 && $2 == "main" {print $4}')" = online ]; then
        [ -z "${1:-}" ] || pg_ctlcluster 15 main restart
    else
        pg_ctlcluster 15 main start
        echo postgres >>"$STATE"
    fi
}

write_configuration() {
    cat >/etc/gavo.rc <<C
$SIGN
[general]
maintainerAddress: root@localhost
[web]
bindAddress: 127.0.0.1
serverPort: $1
serverURL: http://127.0.0.1:$1
[async]
defaultMAXREC: 3000000
hardMAXREC: 3000000
maxTAPRunning: 4
[ivoa]
authority: x-local.test
C
}

install_server() {
    installed gavodachs2-server && return
    say "installing PostgreSQL and DaCHS"
    apt-get update -qq >&2 || cannot "apt-get update failed"
    "${APT[@]}" postgresql-15 postgresql-15-pgsphere >&2 || cannot "apt-get cannot install PostgreSQL"
    python3 "$HERE/patch_dachs.py" pgsphere >&2
    start_postgres again # its set-up needs a running database, of the version now installed
    "${APT[@]}" gavodachs2-server >&2 || cannot "apt-get cannot install gavodachs2-server"
}

load_tables() {
    for schema in $SCHEMAS; do
        rm -rf "${INPUTS:?}/$schema"
        mkdir -p "$INPUTS/$schema"
        cp "$HERE/descriptors/$schema/q.rd" "$INPUTS/$schema/"
        cp -r "$1/$schema" "$INPUTS/$schema/data"
        chown -R dachsroot:gavo "$INPUTS/$schema"
        su dachsroot -s /bin/bash -c "cd $INPUTS && dachs imp $schema/q" >&2
    done
}

serve() {
    su dachsroot -s /bin/bash -c "dachs serve start" >&2
    echo dachs >>"$STATE"
    for _ in $(seq 240); do
        if curl -fs -m 5 -o /dev/null "http://127.0.0.1:$1/tap/capabilities"; then
            return
        fi
        sleep 0.25
    done
    echo "DaCHS does not answer on port $1 after 60 s" >&2
    exit 1
}

start() {
    check_machine
    stop
    write_configuration "$1"
    install_server
    python3 "$HERE/patch_dachs.py" pgsphere dachs >&2
    start_postgres
    say "loading tables"
    load_tables "$2"
    say "starting"
    serve "$1"
    say "up: http://127.0.0.1:$1/tap"
}

stop() {
    [ -e "$STATE" ] || return 0
    if grep -qx dachs "$STATE"; then
        su dachsroot -s /bin/bash -c "dachs serve stop" >&2 || true
    fi
    if grep -qx postgres "$STATE"; then
        pg_ctlcluster 15 main stop -m fast || true
    fi
    rm -f "$STATE"
}

case "${1:-}" in
    start) start "${2:?port}" "${3:?folder of tables}" ;;
    stop) stop ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
