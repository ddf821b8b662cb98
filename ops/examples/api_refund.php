<?php
/*
 * PHP: submit a refund over HTTP and wait for it; receive callbacks and check their signatures. Needs no extension.
 *
 *   export REFUNDS_API=http://127.0.0.1:8080 REFUNDS_TOKEN=rfw_…
 *   php ops/examples/api_refund.php order-1001-1 pi_123 500
 *   CALLBACK_SECRETS=whsec_… php -S 127.0.0.1:9000 ops/examples/api_refund.php      # or any web server with PHP
 *
 * Prints the refund as JSON. Exit codes: 0 succeeded, 3 rejected, 4 not succeeded, 5 not accepted: run it again.
 */
declare(strict_types=1);

const TRIES = 4;

/* Return the status and the text of an answer; status 0 if there was none. */
function ask(string $method, string $path, ?array $fields = null): array
{
    $headers = ['Authorization: Bearer ' . getenv('REFUNDS_TOKEN'), 'Content-Type: application/json'];
    $content = $fields === null ? '' : json_encode($fields, JSON_THROW_ON_ERROR);
    $http = ['method' => $method, 'header' => $headers, 'content' => $content, 'timeout' => 75, 'ignore_errors' => true];
    $http['follow_location'] = 0;
    $http_response_header = [];
    $text = @file_get_contents(getenv('REFUNDS_API') . $path, false, stream_context_create(['http' => $http]));
    $found = preg_match('#^HTTP/\S+ (\d{3})#', $http_response_header[0] ?? '', $status);
    return $text === false || !$found ? [0, 'no answer'] : [(int) $status[1], $text];
}

/*
 * Submit a refund, and return its record once it is settled or needs a person, or as it is after 30 seconds.
 * The same request again is safe, because `refund_id` is the idempotency key.
 */
function submit(array $fields): array
{
    for ($try = 1; ; $try++) {
        [$status, $text] = ask('POST', '/v1/refunds?wait=30', $fields);
        if ($status === 200 || $status === 202) {
            $refund = json_decode($text, true);
            if (is_array($refund)) {
                return $refund;
            }
            $status = 0; // the answer broke off
        }
        if ($status !== 0 && $status !== 429 && $status < 500) {
            throw new DomainException($text); // a problem that names every wrong field
        }
        if ($try === TRIES) {
            throw new RuntimeException("refund {$fields['refund_id']} is not known to be accepted: $text");
        }
        sleep($try);
    }
}

/* Return whether a callback was signed with one of our secrets within the last five minutes. */
function is_genuine(string $id, string $time, string $signatures, string $body): bool
{
    foreach (preg_split('/\s+/', trim((string) getenv('CALLBACK_SECRETS'))) as $secret) {
        $key = base64_decode(preg_replace('/^whsec_/', '', $secret));
        $ours = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$time.$body", $key, true));
        foreach (explode(' ', $signatures) as $given) { // several while a secret is replaced
            if (hash_equals($ours, $given)) {
                return abs(time() - (int) $time) < 300;
            }
        }
    }
    return false;
}

/* Answer one callback: 204 if it is genuine. Keep `updated_at` and `version` with the order, and drop one not above them. */
function receive(): void
{
    $body = file_get_contents('php://input');
    [$id, $time, $signatures] = array_map(
        fn(string $name): string => $_SERVER["HTTP_WEBHOOK_$name"] ?? '',
        ['ID', 'TIMESTAMP', 'SIGNATURE'],
    );
    if (!is_genuine($id, $time, $signatures, $body)) {
        http_response_code(400);
        return;
    }
    $data = json_decode($body, true, 64, JSON_THROW_ON_ERROR)['data'];
    if (isset($data['refund_id'])) {
        error_log("{$data['refund_id']} {$data['status']} version {$data['version']}");
    }
    http_response_code(204);
}

/* Return an amount in minor units; anything else stays text, which is refused. A cast would make 12 of "12.50". */
function minor_units(?string $text): int|string
{
    return preg_match('/^\d+$/D', (string) $text) ? (int) $text : (string) $text;
}

if (PHP_SAPI !== 'cli') {
    receive();
    return;
}
[, $id, $payment, $amount] = $argv;
try {
    // The amount is a number in minor units: "500" in quotes would be refused.
    $refund = submit(['refund_id' => $id, 'payment_intent' => $payment, 'amount' => minor_units($amount)]);
} catch (DomainException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(3);
} catch (RuntimeException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(5);
}
echo json_encode($refund), "\n";
exit($refund['status'] === 'succeeded' ? 0 : 4);
