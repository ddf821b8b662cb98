#!/bin/sh
# cron: import every CSV file of a folder, and put each file where its outcome belongs.
#
#   /etc/cron.d/refunds:
#     PATH=/opt/refunds/bin:/usr/bin:/bin
#     REFUNDS_SECRETS_DIR=/etc/refunds/secrets
#     */10 * * * * refunds /opt/refunds/cron_import.sh /srv/refunds
#
#   incoming/  put a file here by renaming it, so that no half of it is ever read, to a name that is not there yet
#   working/   taken, and not imported yet
#   done/      imported: see 'refunds batch list'; its refunds go on without this script
#   rejected/  a row is invalid: nothing was imported; NAME.errors.csv says which and why
#   held/      a guard refused: nothing was imported, unless the reason says that the batch was canceled or that rows were
#              skipped during the import; a person reads the reason and decides
#
# A file stays in working/ if Redis is unavailable or the script is killed. The next run continues where it stopped, and
# makes no refund twice. cron mails what is written to stderr.
set -u
umask 077
folder=${1:?usage: cron_import.sh FOLDER}
mkdir -p "$folder/incoming" "$folder/working" "$folder/done" "$folder/rejected" "$folder/held" || exit 1

# Only one run at a time. The lock goes away with the process.
exec 9>"$folder/.lock"
flock --nonblock 9 || exit 0

# Each file is taken first, so that what is put aside later is what was imported, and not a file that has come since
# under the same name.
for file in "$folder"/incoming/*.csv; do
    [ -f "$file" ] || continue
    mv "$file" "$folder/working/$(date -u +%Y%m%dT%H%M%SZ)-$(basename "$file")" || exit 1
done

worst=0
for file in "$folder"/working/*.csv; do
    [ -f "$file" ] || continue
    name=$(basename "$file")
    # Set the columns and the limit that fit your files. The ids come from a column, so a row has one id in any file.
    refunds import "$file" --id-from order_id --max-total usd=5000000 \
        --errors "$folder/rejected/$name.errors.csv" --json >>"$folder/imports.jsonl"
    code=$?
    case $code in
        0 | 9) mv "$file" "$folder/done/$name" ;; # 9: every row was accepted before
        3) mv "$file" "$folder/rejected/$name" ;;
        6) mv "$file" "$folder/held/$name" ;;
        *) exit "$code" ;; # 2 settings, 5 Redis is unavailable: the next file would end in the same way
    esac
    case $code in
        3 | 6) worst=$code ;;
    esac
done
exit "$worst"
