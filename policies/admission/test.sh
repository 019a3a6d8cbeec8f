#!/usr/bin/env bash
# Every admission policy against a real API server.
#
#   policies/admission/test.sh                      each allow case is admitted, each deny case is denied by its policy
#   policies/admission/test.sh --without-policies   the same cases with no policy installed: all must be admitted,
#                                                   so that what denies is the policy and nothing else
#
# Comes in: ETCD, KUBE_APISERVER, KUBECTL (see apiserver.sh). Goes out: a line a case, `N passed, N failed`, and
# 1 when one failed. Cases: see README.md.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/apiserver.sh"

mode=with
case "${1-}" in
  '') ;;
  --without-policies) mode=without ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

trap stop_apiserver EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
start_apiserver
work=$APISERVER_DIR
k() { "$KUBECTL" --request-timeout 20s "$@"; }
must() { local out; out=$("$@" 2>&1) || { printf '%s: %s\n%s\n' "$0" "$*" "$out" >&2; exit 1; }; }

namespace=lockkeeper-system
must k apply -f "$here/../../crds/manifests"
must k wait --for=condition=Established --timeout=30s crd/clusterversions.lockkeeper.dev \
  crd/controlplanenodes.lockkeeper.dev crd/etcdbackups.lockkeeper.dev crd/etcdrestores.lockkeeper.dev
must k create namespace "$namespace"
# Wide rights: what is denied here is denied by a policy, not by RBAC.
must k create clusterrole all-of-lockkeeper --verb='*' --resource=clusterversions.lockkeeper.dev,controlplanenodes.lockkeeper.dev,etcdbackups.lockkeeper.dev,clusterversions.lockkeeper.dev/status,controlplanenodes.lockkeeper.dev/status,etcdbackups.lockkeeper.dev/status,etcdrestores.lockkeeper.dev,etcdrestores.lockkeeper.dev/status
for account in lockkeeper-agent lockkeeper-operator; do
  must k -n "$namespace" create serviceaccount "$account"
  must k create clusterrolebinding "$account" --clusterrole=all-of-lockkeeper --serviceaccount="$namespace:$account"
done

# An agent's token as the kubelet would get it: bound to a pod that is on a node. Only the objects exist.
for node in cp-1 cp-2; do
  must k create -f - <<END
{apiVersion: v1, kind: Node, metadata: {name: $node}}
END
  must k -n "$namespace" create -f - <<END
apiVersion: v1
kind: Pod
metadata: {name: agent-$node}
spec:
  nodeName: $node
  serviceAccountName: lockkeeper-agent
  automountServiceAccountToken: false
  containers: [{name: agent, image: example.invalid/agent}]
END
  token=$(k -n "$namespace" create token lockkeeper-agent --bound-object-kind Pod --bound-object-name "agent-$node") || exit 1
  kubeconfig_for "$token" "$work/agent-$node.conf"
done
# Tokens bound to nothing.
kubeconfig_for "$(k -n "$namespace" create token lockkeeper-agent)" "$work/agent-unbound.conf"
kubeconfig_for "$(k -n "$namespace" create token lockkeeper-operator)" "$work/operator.conf"
cp "$work/admin.conf" "$work/person.conf"

if [ "$mode" = with ]; then
  for policy in "$here"/*.yaml; do must k apply -f "$policy"; done
fi

# header KEY FILE: the value of a `# key: value` line.
header() { sed -n "s/^# $1: //p" "$2" | head -n 1; }

# split FILE: its documents to $work/before.yaml (when there are two) and $work/request.yaml.
split() {
  rm -f "$work"/doc-*.yaml "$work/before.yaml"
  awk -v dir="$work" 'BEGIN { n = 1 } /^---$/ { n++; next } { print > (dir "/doc-" n ".yaml") }' "$1"
  if [ -f "$work/doc-2.yaml" ]; then
    mv "$work/doc-1.yaml" "$work/before.yaml"; mv "$work/doc-2.yaml" "$work/request.yaml"
  else
    mv "$work/doc-1.yaml" "$work/request.yaml"
  fi
}

# Nothing of a case before, then what the case says was there.
prepare() {
  # What a case before added would keep its object for ever.
  if grep -qs '^  finalizers:' "$work/request.yaml"; then
    k patch clusterversion cluster --type=merge -p '{"metadata":{"finalizers":null}}' >/dev/null 2>&1
  fi
  must k delete clusterversions,controlplanenodes --all
  must k -n "$namespace" delete etcdbackups,etcdrestores --all
  split "$1"
  [ -f "$work/before.yaml" ] || return 0
  must k create -f "$work/before.yaml"
  if grep -q '^status:' "$work/before.yaml"; then must k replace --subresource=status -f "$work/before.yaml"; fi
}

# request FILE: does what the case says, as whom it says. Its answer is in $work/answer.
request() {
  local as verb
  as=$(header as "$1") verb=$(header verb "$1")
  [ -f "$work/$as.conf" ] || { echo "$1: as: '$as' is nobody" >&2; exit 2; }
  case "$verb" in
    create) set -- create ;;
    update) set -- replace ;;
    status) set -- replace --subresource=status ;;
    delete)
      k --kubeconfig "$work/$as.conf" delete --wait=false -f "$work/request.yaml" >"$work/answer" 2>&1; return ;;
    *) echo "$1: verb: '$verb' is none of create, update, status, delete" >&2; exit 2 ;;
  esac
  k --kubeconfig "$work/$as.conf" "$@" -f "$work/request.yaml" >"$work/answer" 2>&1
}

denied_by() { grep -q "ValidatingAdmissionPolicy '$1.lockkeeper.dev'" "$work/answer"; }

# A policy works from the moment that the server's informer has seen it and its binding.
await_policy() {
  local case i
  for case in "$here/testdata/$1"/deny/*.yaml; do break; done
  for ((i = 0; i < 60; i++)); do
    prepare "$case"
    request "$case" || { denied_by "$1" && return; }
    sleep 0.25
  done
  echo "$0: $1 does not deny $(basename "$case"): $(cat "$work/answer")" >&2
}

passed=0 failed=0
verdict() {
  if [ "$1" = ok ]; then passed=$((passed + 1)); echo "ok    $2"
  else failed=$((failed + 1)); echo "FAIL  $2: $3"; sed 's/^/      /' "$work/answer"; fi
}

for file in "$here"/*.yaml; do
  policy=$(basename "$file" .yaml)
  for kind in allow deny; do
    ls "$here/testdata/$policy/$kind"/*.yaml >/dev/null 2>&1 \
      || { : >"$work/answer"; verdict bad "$policy/$kind" "has no case"; }
  done
  [ "$mode" = without ] || await_policy "$policy"
  for case in "$here/testdata/$policy"/{allow,deny}/*.yaml; do
    [ -f "$case" ] || continue
    kind=$(basename "$(dirname "$case")") name=$policy/$kind/$(basename "$case" .yaml)
    prepare "$case"
    request "$case"; code=$?
    says=$(header says "$case")
    if [ "$kind" = allow ] || [ "$mode" = without ]; then
      if [ $code = 0 ]; then verdict ok "$name"; else verdict bad "$name" "was not admitted"; fi
    elif [ $code = 0 ]; then verdict bad "$name" "was admitted"
    elif ! denied_by "$policy"; then verdict bad "$name" "was refused, but not by this policy"
    elif [ -z "$says" ]; then verdict bad "$name" "has no 'says:' line"
    elif ! grep -qF -- "$says" "$work/answer"; then verdict bad "$name" "does not say '$says'"
    else verdict ok "$name"; fi
  done
done
echo "$passed passed, $failed failed ($mode policies)"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
