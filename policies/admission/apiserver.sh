# shellcheck shell=bash
# A real etcd and kube-apiserver on loopback, for tests. Sourced, not run.
#
# Comes in:  ETCD, KUBE_APISERVER, KUBECTL: paths of the binaries (defaults: found in PATH).
# Goes out:  start_apiserver: sets APISERVER_DIR (scratch, removed at the end) and KUBECONFIG (an administrator);
#            stop_apiserver: ends both processes and removes the scratch; call it from a trap on EXIT;
#            kubeconfig_for TOKEN FILE: a kubeconfig for a bearer token.
# May touch: its scratch directory under TMPDIR and three loopback ports that were free.

ETCD=${ETCD:-etcd}
KUBE_APISERVER=${KUBE_APISERVER:-kube-apiserver}
KUBECTL=${KUBECTL:-kubectl}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "$0: $tool not found: set ETCD, KUBE_APISERVER and KUBECTL to the binaries, and install openssl" >&2; exit 2; }
  done
}

# A port nobody listens on. Two tests at once seldom draw the same one; start_apiserver tries again when they do.
free_port() {
  local port
  while :; do
    # Below the kernel's range for outgoing connections (32768 and up).
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

start_apiserver() {
  need "$ETCD" "$KUBE_APISERVER" "$KUBECTL" openssl
  APISERVER_DIR=$(mktemp -d "${TMPDIR:-/tmp}/lockkeeper-apiserver.XXXXXX")
  APISERVER_PIDS=()
  openssl ecparam -name prime256v1 -genkey -noout -out "$APISERVER_DIR/sa.key" 2>/dev/null
  local admin attempt
  admin=$(openssl rand -hex 16)
  # token,user,uid,groups. "person" is who edits a ClusterVersion; system:masters, so that RBAC has no say in
  # what a policy's test finds.
  printf '%s,person,person,system:masters\n' "$admin" >"$APISERVER_DIR/tokens.csv"
  for attempt in 1 2 3; do
    if try_start "$admin"; then
      export KUBECONFIG=$APISERVER_DIR/admin.conf
      return
    fi
    stop_processes
  done
  echo "$0: the API server did not become ready; last lines of its log:" >&2
  tail -n 20 "$APISERVER_DIR/etcd.log" "$APISERVER_DIR/apiserver.log" >&2
  exit 1
}

try_start() {
  local client peer
  client=$(free_port) peer=$(free_port) APISERVER_PORT=$(free_port)
  rm -rf "$APISERVER_DIR/etcd"
  # Where util-linux has it: the servers end with this shell also when it is killed and its trap cannot run.
  local leash=(env)
  ! command -v setpriv >/dev/null || leash=(setpriv --pdeathsig KILL)
  # --unsafe-no-fsync: a test's data is worth nothing, its time is.
  "${leash[@]}" "$ETCD" --name t --data-dir "$APISERVER_DIR/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
    --initial-cluster "t=http://127.0.0.1:$peer" >"$APISERVER_DIR/etcd.log" 2>&1 </dev/null &
  APISERVER_PIDS+=($!)
  # DefaultTolerationSeconds and ServiceAccount off: no controllers run here that would make what they look for.
  "${leash[@]}" "$KUBE_APISERVER" --etcd-servers "http://127.0.0.1:$client" --cert-dir "$APISERVER_DIR/certs" \
    --bind-address 127.0.0.1 --secure-port "$APISERVER_PORT" --advertise-address 127.0.0.1 \
    --endpoint-reconciler-type none --service-cluster-ip-range 10.96.0.0/16 \
    --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$APISERVER_DIR/sa.key" \
    --service-account-key-file "$APISERVER_DIR/sa.key" --token-auth-file "$APISERVER_DIR/tokens.csv" \
    --authorization-mode RBAC --disable-admission-plugins ServiceAccount \
    --watch-cache=true --v=1 >"$APISERVER_DIR/apiserver.log" 2>&1 </dev/null &
  APISERVER_PIDS+=($!)
  kubeconfig_for "$1" "$APISERVER_DIR/admin.conf"
  local pid until=$((SECONDS + 60))
  while ((SECONDS < until)); do
    for pid in "${APISERVER_PIDS[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
    [ "$("$KUBECTL" --kubeconfig "$APISERVER_DIR/admin.conf" --request-timeout 5s get --raw /readyz 2>/dev/null)" = ok ] && return 0
    sleep 0.2
  done
  return 1
}

# A kubeconfig for a bearer token. The server's certificate is its own and the port is on loopback.
kubeconfig_for() {
  (umask 077; cat >"$2") <<END
apiVersion: v1
kind: Config
clusters: [{name: t, cluster: {server: "https://127.0.0.1:$APISERVER_PORT", insecure-skip-tls-verify: true}}]
users: [{name: t, user: {token: "$1"}}]
contexts: [{name: t, context: {cluster: t, user: t}}]
current-context: t
END
}

stop_processes() {
  local pid
  for pid in "${APISERVER_PIDS[@]}"; do kill -9 "$pid" 2>/dev/null; done
  for pid in "${APISERVER_PIDS[@]}"; do wait "$pid" 2>/dev/null; done
  APISERVER_PIDS=()
}

stop_apiserver() {
  [ -n "${APISERVER_DIR:-}" ] || return 0
  stop_processes
  rm -rf "$APISERVER_DIR"
}
