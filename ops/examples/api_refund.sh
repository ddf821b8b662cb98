#!/bin/sh
# curl: submit a refund over HTTP and wait for it; check the signature of a callback.
#
#   export REFUNDS_API=http://127.0.0.1:8080 REFUNDS_TOKEN=rfw_…
#   ops/examples/api_refund.sh order-1001-1 pi_123 500
#   CALLBACK_SECRET=whsec_… ops/examples/api_refund.sh verify WEBHOOK-ID WEBHOOK-TIMESTAMP WEBHOOK-SIGNATURE <body
#
# Prints the refund as JSON. Exit codes: 0 succeeded, or the signature is genuine; 1 it is not; 3 rejected; 4 not
# succeeded; 5 not known to be accepted: run it again.
set -eu

# ask PATH OPTION...: print the status, and put the answer into a file. The token is read from standard input, because
# other users of this machine can see arguments. The same request again is safe: the refund's id is the idempotency key.
ask() {
    path=$1
    shift
    printf 'header = "Authorization: Bearer %s"\n' "$REFUNDS_TOKEN" |
        curl --config - --silent --show-error --max-time 75 --retry 3 --retry-connrefused --output "$answer" \
            --write-out '%{http_code}' "$@" "$REFUNDS_API$path"
}

submit() {
    body=$(printf '{"refund_id": "%s", "payment_intent": "%s", "amount": %s}' "$1" "$2" "$3")
    answer=$(mktemp)
    trap 'rm -f "$answer"' EXIT
    status=$(ask "/v1/refunds?wait=30" --header 'Content-Type: application/json' --data-binary "$body") || exit 5
    case $status in
        200 | 202) cat "$answer" ;;
        429 | 5??) cat "$answer" >&2; exit 5 ;;
        *) cat "$answer" >&2; exit 3 ;;
    esac
    grep -q '"status": *"succeeded"' "$answer" || exit 4
}

# verify ID TIMESTAMP SIGNATURES: the body is read from standard input, byte by byte as it came. Use it on a machine of
# your own only: openssl has no other way to be given the key than an argument.
verify() {
    age=$(($(date +%s) - $2))
    [ "$age" -lt 300 ] && [ "$age" -gt -300 ] || exit 1
    key=$(printf %s "${CALLBACK_SECRET#whsec_}" | base64 -d | od -An -v -tx1 | tr -d ' \n')
    ours=v1,$({ printf '%s.%s.' "$1" "$2"; cat; } | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)
    # Several while a secret is replaced.
    for one in $3; do
        [ "$one" != "$ours" ] || exit 0
    done
    exit 1
}

case $1 in
    verify) shift; verify "$@" ;;
    *) submit "$@" ;;
esac
