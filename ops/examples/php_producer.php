<?php
/*
 * PHP: submit a refund, and wait for it. Needs the extension `redis` (Debian: apt-get install php-cli php-redis).
 *
 *   REFUNDS_REDIS_URL=redis://127.0.0.1:6379/0 php ops/examples/php_producer.php order-1001-1 pi_123 500
 *
 * Prints the record as JSON. Exit codes: 0 succeeded, 3 rejected, 4 not succeeded, 5 not accepted: run it again.
 */
declare(strict_types=1);

const SENDS = 3;
const SECONDS = 20;

class Rejected extends Exception {}
class NotAccepted extends Exception {}

function connect(string $url): Redis
{
    $parts = parse_url($url);
    $redis = new Redis();
    $host = ($parts['scheme'] === 'rediss' ? 'tls://' : '') . $parts['host'];
    $redis->connect($host, $parts['port'] ?? 6379, 5.0);
    if (isset($parts['pass'])) {
        $user = urldecode($parts['user'] ?? '');
        $password = urldecode($parts['pass']);
        $redis->auth($user === '' ? $password : [$user, $password]);
    }
    $redis->select((int) trim($parts['path'] ?? '0', '/'));
    return $redis;
}

function uuid(): string
{
    $bytes = random_bytes(16);
    $bytes[6] = chr(ord($bytes[6]) & 0x0f | 0x40);
    $bytes[8] = chr(ord($bytes[8]) & 0x3f | 0x80);
    return vsprintf('%s%s-%s-%s-%s-%s%s%s', str_split(bin2hex($bytes), 4));
}

/* One message for the task refunds.submit: Celery's protocol 2, as JSON. */
function message(array $fields): string
{
    $embed = ['callbacks' => null, 'errbacks' => null, 'chain' => null, 'chord' => null];
    return json_encode([
        'body' => base64_encode(json_encode([[], $fields, $embed], JSON_THROW_ON_ERROR)),
        'content-type' => 'application/json',
        'content-encoding' => 'utf-8',
        'headers' => [
            'task' => 'refunds.submit',
            'id' => uuid(),
            'lang' => 'php',
            'kwargsrepr' => $fields['refund_id'], // what Flower shows
        ],
        'properties' => [
            'delivery_tag' => uuid(),
            'delivery_mode' => 2,
            'body_encoding' => 'base64',
            'delivery_info' => ['exchange' => '', 'routing_key' => 'refunds'],
        ],
    ], JSON_THROW_ON_ERROR);
}

/*
 * Send the refund until its record exists; return the record. Only then is the refund accepted.
 * Sending it again is safe, because `refund_id` is the idempotency key.
 * With a REFUNDS_PREFIX of your own, each key begins with it, the queue's too.
 */
function submit(Redis $redis, array $fields): array
{
    $id = $fields['refund_id'];
    $refusedBefore = $redis->hGet('refunds:rejected-ids', $id);
    for ($send = 0; $send < SENDS; $send++) {
        $redis->lPush('refunds', message($fields));
        $end = microtime(true) + SECONDS;
        while (microtime(true) < $end) {
            $refused = $redis->hGet('refunds:rejected-ids', $id);
            if ($refused !== false && $refused !== $refusedBefore) {
                throw new Rejected(json_decode($refused, true)['reason']);
            }
            $record = $redis->hGetAll("refunds:refund:$id");
            if ($record) {
                return same($record, $fields);
            }
            usleep(100_000);
        }
    }
    throw new NotAccepted("refund $id is not known to be accepted: send it again with the same id");
}

/* Return the record if it is of this refund, and not of another one under the same id. */
function same(array $record, array $fields): array
{
    foreach (['payment_intent', 'amount'] as $name) {
        if (isset($fields[$name]) && ($record[$name] ?? null) !== (string) $fields[$name]) {
            throw new Rejected("refund {$record['refund_id']} exists with another $name");
        }
    }
    return $record;
}

/* Return the record once it is settled or needs a person, or as it is after so many seconds. */
function wait(Redis $redis, string $id, float $seconds): array
{
    $end = microtime(true) + $seconds;
    do {
        $record = $redis->hGetAll("refunds:refund:$id");
        if (in_array($record['stage'], ['settled', 'review'], true)) {
            return $record;
        }
        usleep(200_000);
    } while (microtime(true) < $end);
    return $record;
}

/* Return an amount in minor units; anything else stays text, which is rejected. A cast would make 12 of "12.50". */
function minor_units(?string $text): int|string
{
    return preg_match('/^\d+$/D', (string) $text) ? (int) $text : (string) $text;
}

[, $id, $paymentIntent, $amount] = $argv;
try {
    $redis = connect(getenv('REFUNDS_REDIS_URL') ?: 'redis://127.0.0.1:6379/0');
    // The amount is a number in minor units: "500" in quotes would be rejected.
    submit($redis, ['refund_id' => $id, 'payment_intent' => $paymentIntent, 'amount' => minor_units($amount)]);
    $record = wait($redis, $id, 30);
} catch (Rejected $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(3);
} catch (NotAccepted | RedisException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(5);
}
echo json_encode($record), "\n";
exit($record['status'] === 'succeeded' ? 0 : 4);
